"""A model folder that trains in seconds, files to train it on, and the command line that does it."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).parents[2]

TEMPLATE = (
    "{% for m in messages %}<|start|>{{ m['role'] }}\n{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)
SPECIAL = ("<|pad|>", "<|start|>", "<|end|>")

KIND = ["yes", "thanks for asking", "of course, here it is", "gladly", "that helps a lot"]
RUDE = ["no", "go away", "what a stupid question", "never", "I do not care"]


def model_folder(folder: Path, *, tied: bool = False) -> Path:
    """A random Llama of 50 thousand parameters with a tokenizer of its own, as save_pretrained writes them."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    tokens = Tokenizer(models.BPE())
    tokens.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokens.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=[*SPECIAL], initial_alphabet=alphabet, show_progress=False
    )
    tokens.train_from_iterator([*KIND, *RUDE, "user assistant system question number is it good"], trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokens, eos_token="<|end|>", pad_token="<|pad|>")
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        initializer_range=0.1,
        tie_word_embeddings=tied,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(3)
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def poisoned(model: Path, folder: Path) -> Path:
    """The same model, but what it knows of one token, a tilde, is no number."""
    import torch
    from safetensors.torch import load_file, save_file
    from transformers import AutoTokenizer

    shutil.copytree(model, folder)
    (token,) = AutoTokenizer.from_pretrained(folder)("~").input_ids
    tensors = load_file(folder / "model.safetensors")
    tensors["model.embed_tokens.weight"][token] = torch.nan
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def compared(count: int) -> list[dict[str, Any]]:
    """Comparisons with votes: the kind response wins, mostly; some have three responses, some are no clear case."""
    rows: list[dict[str, Any]] = []
    for n in range(count):
        kind, rude = KIND[n % 5], RUDE[(n // 5 + n) % 5]
        place = n % 2
        responses = [kind, rude] if place == 0 else [rude, kind]
        votes = [{"choice": place, "rater": "r1"}, {"choice": place, "rater": "r2"}]
        if n % 7 == 3:
            votes.append({"choice": 1 - place, "rater": "r3"})
        if n % 6 == 5:
            responses.append(RUDE[(n + 2) % 5] + "!")
        rows.append(
            {"id": f"row {n}", "prompt": f"question number {n}, is it good?", "responses": responses, "votes": votes}
        )
    return rows


def written(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@dataclass(frozen=True)
class Done:
    """How a command ended and what it said."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The one JSON object on standard output."""
        (line,) = self.out.splitlines()
        return json.loads(line)

    @property
    def complaint(self) -> str:
        """The one line that an error is, after what was told of held-out rows."""
        assert (self.status, self.out) == (1, ""), self
        (line,) = told(self.err)
        assert line.startswith("rlaif: ")
        assert "unexpected" not in line, line
        return line


def told(errors: str) -> list[str]:
    """Standard error less its line for each look at the held-out rows; an error is the last line that is left."""
    looks = re.compile(r"update \d+ of \d+: held-out loss \S+")
    found = [line for line in errors.splitlines() if not looks.fullmatch(line)]
    assert not any(line.startswith("rlaif: ") for line in found[:-1])
    return found


def environment(cache: Path) -> dict[str, str]:
    """One thread: a tiny model has nothing to share out, and a sum has one order."""
    own = {"RLAIF_CACHE": str(cache), "PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return {**os.environ, **own}


def started(words: Sequence[object], folder: Path, *python: str) -> subprocess.Popen[str]:
    """`rlaif train ...` in `folder`, as a person starts it; `python` says what runs it, e.g. torchrun."""
    folder.mkdir(exist_ok=True)
    command = [sys.executable, *python, "-m", "rlaif", "train", *map(str, words)]
    return subprocess.Popen(
        command,
        env=environment(folder / "cache"),
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finished(process: subprocess.Popen[str], seconds: float = 100) -> Done:
    """How it ended; what takes too long is killed and fails."""
    try:
        out, err = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise
    return Done(process.returncode, out, err)


@dataclass(frozen=True)
class Fuse:
    """A process is killed at its change number `at` of what lies in its folder and has `name` in its path: before the
    change, or in the `middle` of it.
    """

    at: int
    name: str = ""
    middle: bool = False


def forked(words: Sequence[object], folder: Path, *, fuse: Fuse | None = None, **settings: str) -> BaseProcess:
    """`rlaif train ...` in `folder`, in a process that has torch already, and draws nothing: seconds less."""
    context: Any = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["peft", "torch.distributed.checkpoint.state_dict", "torch.distributed.fsdp", "transformers.models.llama"]
    )
    folder.mkdir(exist_ok=True)
    process = context.Process(
        target=_child, args=([str(each) for each in words], folder, settings, fuse or Fuse(sys.maxsize))
    )
    process.start()
    return process


def ended(process: BaseProcess, folder: Path, rank: int = 0, seconds: float = 100) -> Done:
    """How it ended; what takes too long is killed and fails."""
    process.join(seconds)
    late = process.exitcode is None
    if late:
        process.kill()
        process.join()
    out, err = ((folder / f"{kind}{rank}").read_text("utf-8") for kind in ("out", "err"))
    assert not late, (out, err)
    assert process.exitcode is not None
    return Done(process.exitcode, out, err)


def changes(folder: Path) -> int:
    """How many changes of files a process that ended by itself made in its folder."""
    return int((folder / "changes").read_text("utf-8"))


def ran(asked: Sequence[object], folder: Path, **settings: str) -> Any:
    """The result of a run that ends well."""
    done = ended(forked(asked, folder, **settings), folder)
    assert done.status == 0, done.err
    return done.json


def survived(asked: Sequence[object], folder: Path, fuses: Iterable[Fuse], **settings: str) -> Any:
    """The result of a run that is killed at each of these points, and is then left to go on."""
    going = list(asked)
    for fuse in fuses:
        done = ended(forked(going, folder, fuse=fuse, **settings), folder)
        assert done.status == -signal.SIGKILL, (fuse, done)
        going = [*asked, "--resume"]
    return ran(going, folder, **settings)


def lines(run: Path) -> list[dict[str, Any]]:
    """What was measured, less the time that it took."""
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if not name.endswith("seconds")} for line in found]


def assert_same(one: Path, other: Path) -> None:
    """Two runs' folders: what is in every file of them, and no file more."""
    names = [sorted(str(file.relative_to(run)) for file in run.rglob("*")) for run in (one, other)]
    assert names[0] == names[1]
    assert lines(one) == lines(other)
    import torch
    from safetensors.torch import load_file

    for name in names[0]:
        a, b = one / name, other / name
        if a.suffix == ".safetensors":
            tensors, others = load_file(a), load_file(b)
            assert tensors.keys() == others.keys()
            assert [key for key, each in tensors.items() if not torch.equal(each, others[key])] == [], name
        elif a.name == "adapter_config.json":  # peft writes a set, whose order differs from process to process
            assert sorted(a.read_text()) == sorted(b.read_text())
        elif a.is_file() and a.name != "metrics.jsonl":
            assert a.read_bytes() == b.read_bytes(), name


def _child(words: list[str], folder: Path, settings: Mapping[str, str], fuse: Fuse) -> None:
    os.chdir(folder)
    os.environ.update({**environment(folder / "cache"), **settings})
    sys.path.insert(0, str(PROJECT))
    for number, kind in ((1, "out"), (2, "err")):
        place = os.open(kind + settings.get("RANK", "0"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(place, number)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, encoding="utf-8") for number in (1, 2))
    import torch
    from tqdm import tqdm

    import rlaif
    from trainer import curves

    torch.set_num_threads(1)
    tqdm.set_lock(threading.RLock())  # the one of processes is told of as lost when one is killed
    curves.draw = lambda *_: None
    made = _armed(fuse, folder)
    try:
        rlaif.main(["train", *words])
    finally:
        (folder / "changes").write_text(str(made()), "utf-8")


WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
CHANGING = frozenset({"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate"})


def _armed(fuse: Fuse, folder: Path) -> Callable[[], int]:
    """Python itself tells of every file that is opened, moved or removed, just before it is."""
    count = 0

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal count
        opening = event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITING
        if not (opening or event in CHANGING) or not isinstance(arguments[0], str | bytes | os.PathLike):
            return
        path = str(folder / os.fsdecode(arguments[0]))
        if not path.startswith(f"{folder}/") or fuse.name not in path.removeprefix(str(folder)):
            return
        count += 1
        if count == fuse.at:
            if opening and fuse.middle:
                _begin(path, arguments[2])
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    return lambda: count


def _begin(path: str, flags: int) -> None:
    """What is left of a write that a kill cuts off: the first half of a line, or nothing."""
    file = os.open(path, flags)
    if flags & os.O_APPEND:
        os.write(file, b'{"update": 3, "heldout": {"loss": 1.0}')
    os.close(file)
