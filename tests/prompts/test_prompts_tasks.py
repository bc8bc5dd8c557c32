from pathlib import Path

import pytest

from prompts import task as tasks
from prompts.task import TaskError, load

SHIPPED = ["harmlessness", "helpfulness", "summarization"]
STYLES = [f"{name}:{preamble}" for name in SHIPPED for preamble in ("base", "detailed")]
AXES = {
    "summarization": ["coherence", "accuracy", "coverage", "overall quality"],
    "helpfulness": ["helpfulness", "honesty", "relevance", "overall quality"],
    "harmlessness": ["danger", "illegality", "insults", "deception", "overall harm"],
}


def test_the_shipped_tasks_are_known():
    assert tasks.names() == SHIPPED


@pytest.mark.parametrize("name", [*SHIPPED, *STYLES])
def test_each_shipped_task_loads_in_each_style(name):
    task = load(name)
    assert task.name == name
    assert task.pairwise is not None
    assert task.score is not None
    assert task.about


@pytest.mark.parametrize(
    ("name", "polarity", "preamble", "cut"),
    [
        ("summarization", "better", "detailed", "end"),
        ("helpfulness", "better", "base", "start"),
        ("harmlessness", "worse", "base", "start"),
    ],
)
def test_polarity_preamble_and_cut_of_each_task(name, polarity, preamble, cut):
    task = load(name)
    assert (task.pairwise.polarity, task.pairwise.preamble, task.cut) == (polarity, preamble, cut)


def test_only_harmlessness_asks_for_the_worse_one_and_says_so():
    for name, text in load("harmlessness").pairwise.preambles.items():
        assert "Always select the more harmful response" in text, name
    assert "1 stands for an extremely harmful response and 10 for an entirely harmless one" in " ".join(
        load("harmlessness").score.preamble.split()
    )
    for name in ("summarization", "helpfulness"):
        assert all("the better of the two" in text for text in load(name).pairwise.preambles.values())


@pytest.mark.parametrize("name", SHIPPED)
def test_the_detailed_preamble_names_its_axes_in_order(name):
    text = load(name).pairwise.preambles["detailed"].lower()
    places = [text.index(f"\n\n{axis}") for axis in AXES[name]]
    assert places == sorted(places)


@pytest.mark.parametrize("name", SHIPPED)
def test_no_ending_or_opening_has_a_space_at_its_end(name):
    task = load(name)
    pair = task.pairwise
    for text in (pair.ending, pair.rationale.opening, pair.rationale.shots_opening, task.score.ending):
        assert text == text.strip()
        assert text


@pytest.mark.parametrize("shots", [2, 4, 6, 8])
def test_the_first_exemplars_of_summarization_are_balanced(shots):
    labels = [exemplar.label for exemplar in load("summarization").pairwise.exemplars[:shots]]
    assert len(labels) == shots
    assert labels.count("1") == labels.count("2")


@pytest.mark.parametrize("name", ["helpfulness", "harmlessness"])
def test_the_two_exemplars_of_the_dialogue_tasks_are_balanced(name):
    assert sorted(exemplar.label for exemplar in load(name).pairwise.exemplars) == ["1", "2"]


@pytest.mark.parametrize("name", SHIPPED)
def test_the_longer_candidate_is_not_always_the_label_of_exemplars(name):
    exemplars = load(name).pairwise.exemplars
    longer = sum((len(each.first) > len(each.second)) == (each.label == "1") for each in exemplars)
    assert 0 < longer < len(exemplars)


@pytest.mark.parametrize("name", SHIPPED)
def test_rationales_of_exemplars_open_as_the_query_does_and_never_give_the_answer(name):
    pair = load(name).pairwise
    for exemplar in pair.exemplars:
        assert exemplar.rationale.startswith(pair.rationale.shots_opening)
        assert pair.ending not in exemplar.rationale
        assert "»" not in exemplar.rationale


def test_a_task_of_ones_own_is_loaded_by_its_path(own):
    path = own()
    task = load(path)
    assert (task.name, task.about, task.pairwise.preamble) == (path, "Which answer is better?", "base")
    assert load(f"{path}:other").pairwise.preamble == "other"


@pytest.mark.parametrize("polarity", ["better", "worse"])
def test_polarity_is_better_unless_the_file_says_otherwise(own, polarity):
    line = {"better": "", "worse": 'polarity = "worse"'}[polarity]
    assert load(own(('polarity = "better"', line))).pairwise.polarity == polarity


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("nope", "unknown task 'nope'; there are harmlessness, helpfulness, summarization"),
        ("", "unknown task ''; there are"),
        ("../tasks/summarization", "unknown task '../tasks/summarization'"),
        ("nope:base", "unknown task 'nope'"),
        ("summarization:nope", "summarization:nope: no preamble 'nope'; there are base, detailed"),
        ("summarization:", "summarization:: no preamble ''; there are base, detailed"),
        ("none/own.toml", r"none/own.toml: no such task file"),
        ("none/own.toml:base", r"none/own.toml: no such task file"),
    ],
)
def test_an_unknown_task_or_preamble_is_refused_with_those_there_are(name, expected):
    with pytest.raises(TaskError, match=expected):
        load(name)


def test_a_folder_is_no_task(tmp_path):
    (tmp_path / "own.toml").mkdir()
    with pytest.raises(TaskError, match=r"own\.toml: no such task file"):
        load(str(tmp_path / "own.toml"))


SAMPLE = '"""Q: {{ prompt }}\\nA1: {{ first }}\\nA2: {{ second }}"""'


def sample(text):
    return SAMPLE, f"'''{text}'''"


PLAIN = "needs a plain {{ prompt }}, once, outside of any condition or filter"
REFUSED = {
    "key": ([("about =", "abuot = 1\nabout =")], "abuot: unknown key"),
    "key-below": ([("[score]", "[score]\nscale = 10")], "score.scale: unknown key"),
    "no-about": ([("about =", "#")], "about: "),
    "no-ending": ([('ending = "Best="', "")], "pairwise.ending: "),
    "cut": ([("[pairwise]", 'cut = "middle"\n[pairwise]')], "cut: "),
    "polarity": ([('"better"', '"best"')], "pairwise.polarity: "),
    "label": ([('label = "2"', "label = 2")], "pairwise.exemplars.0.label: "),
    "default-preamble": ([('preamble = "base"', 'preamble = "nope"')], "'nope' is not among preambles: base, other"),
    "variable": ([sample("{{ prompt }} {{ first }} {{ second }} {{ third }}")], "unknown variables ['third']"),
    "response-in-a-pair": ([sample("{{ prompt }} {{ first }} {{ second }} {{ response }}")], "['response']"),
    "no-second": ([sample("{{ prompt }} {{ first }}")], "pairwise.sample: does not use ['second']"),
    "no-prompt": ([sample("{{ first }} {{ second }}")], "pairwise.sample: does not use ['prompt']"),
    "no-response": ([("{{ response }}", "")], "score.sample: does not use ['response']"),
    "preamble-variable": ([("Rate anew.", "Rate {{ x }}.")], "pairwise.preambles: unknown variables ['x']"),
    "score-preamble": ([("Score it.", "Score {{ cot }}.")], "score.preamble: unknown variables ['cot']"),
    "in-a-condition": (
        [sample("{% if first %}{{ prompt }}{% endif %}{{ first }}{{ second }}")],
        "not a valid template",
    ),
    "in-a-loop": ([sample("{% for x in first %}{{ prompt }}{% endfor %}{{ second }}")], "not a valid template"),
    "filter": ([sample("{{ prompt | upper }}{{ first }}{{ second }}")], PLAIN),
    "expression": ([sample("{{ prompt ~ first }}{{ second }}")], PLAIN),
    "twice": ([sample("{{ prompt }}{{ prompt }}{{ first }}{{ second }}")], "unknown variables ['prompt']"),
    "asked-of-prompt": ([sample("{% if prompt %}{% endif %}{{ prompt }}{{ first }}{{ second }}")], "['prompt']"),
    "raw-prompt": ([sample("{% raw %}{{ prompt }}{% endraw %}{{ first }}{{ second }}")], "does not use ['prompt']"),
    "unclosed": ([sample("{{ prompt }}{{ first }}{{ second")], "not a valid template"),
    "unknown-filter": ([sample("{{ prompt }}{{ first | shout }}{{ second }}")], "No filter named 'shout'"),
    "no-attribute": ([sample("{{ prompt }}{{ first.title_of_it }}{{ second }}")], ""),
    "no-number": ([sample("{{ prompt }}{{ first / 2 }}{{ second }}")], ""),
    "broken-toml": ([("[score]", "[score")], "cannot be read as TOML: "),
    "repeated-key": ([("about =", 'about = "x"\nabout =')], "cannot be read as TOML: "),
}


@pytest.mark.parametrize(("replaced", "expected"), REFUSED.values(), ids=REFUSED)
def test_a_broken_task_is_refused_when_it_is_loaded(own, replaced, expected):
    path = own(*replaced)
    with pytest.raises(TaskError) as error:
        load(path)
    assert str(error.value).startswith(f"{path}: ")
    assert expected in str(error.value)


def test_a_task_that_is_not_utf8_is_refused(tmp_path):
    (tmp_path / "own.toml").write_bytes(b"about = '\xe9'")
    with pytest.raises(TaskError, match=r"own\.toml: cannot be read as TOML"):
        load(str(tmp_path / "own.toml"))


def test_a_task_that_asks_nothing_is_refused(own):
    with pytest.raises(TaskError, match=r"own\.toml: needs a \[pairwise\] or a \[score\] table"):
        load(own(text='about = "x"\n'))


def test_a_preamble_of_a_task_without_any_is_refused(own):
    text = 'about = "x"\n[score]\npreamble = "p"\nsample = "{{ prompt }}{{ response }}"\nending = "S:"\n'
    with pytest.raises(TaskError, match="no preamble 'base'"):
        load(own(text=text) + ":base")


def test_the_digest_is_that_of_the_content_wherever_the_file_is(own):
    copy = own(text=Path(tasks.FOLDER / "summarization.toml").read_text(), name="copy.toml")
    assert load(copy).digest == load("summarization").digest


CHANGES = {
    "polarity": ('"better"', '"worse"'),
    "sample": ("A1:", "B1:"),
    "ending": ("Best=", "Better="),
    "preamble": ("Rate{", "Judge{"),
    "request": ("Why?", "How so?"),
    "exemplar": ('label = "2"', 'label = "1"'),
    "score": ("Score it.", "Mark it."),
    "cut": ("[pairwise]", 'cut = "start"\n[pairwise]'),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_the_digest_changes_with_anything_in_the_file(own, change):
    assert load(own(change)).digest != load(own()).digest


@pytest.mark.parametrize(
    "change",
    [("[score]", "# a remark\n\n[score]"), ("[pairwise]", 'cut = "end"\n[pairwise]'), ('"Best="', "'Best='")],
    ids=["remark", "default", "quotes"],
)
def test_the_digest_does_not_change_with_how_the_file_is_written(own, change):
    assert load(own(change)).digest == load(own()).digest


def test_the_digest_changes_with_the_preamble(own):
    path = own()
    assert load(f"{path}:other").digest != load(path).digest
    assert load("summarization:base").digest != load("summarization").digest


@pytest.mark.parametrize("name", ["summarization:detailed", "helpfulness:base"])
def test_the_digest_does_not_change_where_the_default_preamble_is_named(name):
    assert load(name).digest == load(name.partition(":")[0]).digest


def test_digests_of_shipped_tasks_differ():
    assert len({load(name).digest for name in STYLES}) == len(STYLES)
