"""What are the principles? A constitution file: each principle asks for a critique, a revision and a choice."""

from __future__ import annotations

import tomllib
from dataclasses import replace
from pathlib import Path

from pydantic import ValidationError

from data.records import Prompt, fingerprint
from prompts.render import MARK, transcript
from prompts.render import Prompt as Asked
from prompts.task import Part, Task, TaskError

FOLDER = Path(__file__).parent / "constitutions"

CRITIQUE_REQUEST, REVISION_REQUEST = "Critique Request:", "Revision Request:"
CONVERSATION = f"{MARK} Conversation {MARK}"
STOPS = (f"\n\n{CRITIQUE_REQUEST}", f"\n\n{REVISION_REQUEST}", "\n\nHuman:", MARK)
"""Where a model runs on into what others say. Four: more are refused by some servers."""

_WHICH = " to say which response it is."
_ASSISTANT = "You are an assistant in a conversation with a human. Write your next turn."
_REVIEWER = (
    "You review what an assistant said in a conversation: first a critique is requested, then a revision of the"
    " assistant's last turn. A revision is the whole turn as the assistant should have said it, and nothing else."
)


class Principle(Part):
    """One principle of Constitutional AI (Bai et al. 2022), in the three forms in which it is asked."""

    name: str
    critique: str
    revision: str
    choice: str


class Example(Part):
    """A worked critique and revision, which keeps a model in its roles."""

    prompt: str
    response: str
    critique_request: str
    critique: str
    revision_request: str
    revision: str


class Constitution(Part):
    about: str
    principles: tuple[Principle, ...]
    examples: tuple[Example, ...] = ()

    @property
    def digest(self) -> str:
        """Changes with anything that a model reads of it."""
        return fingerprint(self.model_copy(update={"about": ""}))

    def drawn(self, *of: object) -> Principle:
        """One of the principles, each as likely as the others; the same for the same seed, row and step."""
        return self.principles[int(fingerprint([str(each) for each in of]), 16) % len(self.principles)]


def by(task: Task, principle: Principle) -> Task:
    """The task asked by a principle: its question stands in the preamble's place, and asks for the better response. The
    task's examples answer another question, so they go. Raises TaskError where the task compares nothing.
    """
    if task.pairwise is None:
        raise TaskError(f"task {task.name} has no [pairwise] table; a principle chooses between two responses")
    preamble = "{% raw %}" + principle.choice.strip() + "{% endraw %}" + f" Output 1 or 2{_WHICH}"
    change = {"polarity": "better", "preamble": "principle", "preambles": {"principle": preamble}, "exemplars": ()}
    return replace(task, pairwise=task.pairwise.model_copy(update=change))


def response(prompt: Prompt) -> Asked:
    """The assistant's own response, to be revised."""
    return Asked(_ASSISTANT, "Human: " if isinstance(prompt, str) else "", transcript(prompt), "", "Assistant:")


def critique(law: Constitution, shots: int, prompt: Prompt, text: str, principle: Principle) -> Asked:
    """What in a response goes against a principle?"""
    return _reviewed(law, shots, prompt, text, f"{CRITIQUE_REQUEST} {principle.critique.strip()}", "Critique:")


def revision(law: Constitution, shots: int, prompt: Prompt, text: str, principle: Principle, found: str) -> Asked:
    """The response again, without what the critique found."""
    asked = f"{CRITIQUE_REQUEST} {principle.critique.strip()}\n\nCritique: {found}"
    asked += f"\n\n{REVISION_REQUEST} {principle.revision.strip()}"
    return _reviewed(law, shots, prompt, text, asked, "Revision:")


def _reviewed(law: Constitution, shots: int, prompt: Prompt, text: str, asked: str, answer: str) -> Asked:
    """Conversation, critique, revision, in the examples' format (Bai et al. 2022, section 3.1)."""
    lead = "".join(f"{CONVERSATION}\n\n{_shown(each)}\n\n" for each in law.examples[:shots])
    lead += f"{CONVERSATION}\n\n" + ("Human: " if isinstance(prompt, str) else "")
    return Asked(_REVIEWER, lead, transcript(prompt), f"\n\nAssistant: {text}\n\n{asked}", answer)


def _shown(each: Example) -> str:
    parts = (
        f"Human: {each.prompt.strip()}",
        f"Assistant: {each.response.strip()}",
        f"{CRITIQUE_REQUEST} {each.critique_request.strip()}",
        f"Critique: {each.critique.strip()}",
        f"{REVISION_REQUEST} {each.revision_request.strip()}",
        f"Revision: {each.revision.strip()}",
    )
    return "\n\n".join(parts)


def load(name: str = "default") -> Constitution:
    """The constitution `default`, or a path to a TOML file. Raises TaskError."""
    path = Path(name) if name.endswith(".toml") else FOLDER / f"{name}.toml"
    try:
        return Constitution.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, ValidationError) as error:
        raise TaskError(f"{path}: cannot be read as a constitution: {' '.join(str(error).split())[:200]}") from None
