import pytest

from prompts import constitution
from prompts.task import TaskError

ONE = 'about = "x"\n[[principles]]\nname = "n"\ncritique = "c"\nrevision = "r"\nchoice = "w"\n'


@pytest.mark.parametrize("field", ["name", "critique", "revision", "choice"])
def test_the_constitution_has_16_distinct_principles(field):
    texts = [getattr(principle, field).strip() for principle in constitution.load().principles]
    assert len(texts) == len(set(texts)) == 16
    assert all(texts)


def test_each_principle_asks_for_a_critique_a_revision_and_a_choice():
    for principle in constitution.load().principles:
        assert "response" in principle.critique
        assert principle.revision.startswith("Rewrite the response")
        assert principle.choice.startswith("Which of these responses")


def test_a_constitution_of_ones_own_is_loaded_by_its_path(tmp_path):
    (tmp_path / "own.toml").write_text(ONE)
    [principle] = constitution.load(str(tmp_path / "own.toml")).principles
    assert (principle.name, principle.critique, principle.revision, principle.choice) == ("n", "c", "r", "w")


@pytest.mark.parametrize(
    "text",
    ["principles = [", 'about = "x"\n', ONE.replace('choice = "w"\n', ""), ONE + 'more = "y"\n', 'about = "\udce9"\n'],
    ids=["toml", "no-principles", "no-choice", "unknown-key", "not-utf8"],
)
def test_a_broken_constitution_is_refused_with_its_path(tmp_path, text):
    (tmp_path / "own.toml").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(TaskError, match=r"own\.toml: cannot be read as a constitution: "):
        constitution.load(str(tmp_path / "own.toml"))


@pytest.mark.parametrize("name", ["nope", "none/own.toml"])
def test_an_unknown_constitution_is_refused_with_its_path(name):
    with pytest.raises(TaskError, match=rf"{name.removesuffix('.toml')}\.toml: cannot be read as a constitution"):
        constitution.load(name)
