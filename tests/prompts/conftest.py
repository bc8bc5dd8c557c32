import pytest

OWN = '''
about = "Which answer is better?"

[pairwise]
polarity = "better"
preamble = "base"
sample = """Q: {{ prompt }}\\nA1: {{ first }}\\nA2: {{ second }}"""
ending = "Best="

[pairwise.preambles]
base = "Rate{% if cot %} and explain{% endif %}."
other = "Rate anew."

[pairwise.rationale]
request = "Why?"
opening = "Because:"
shots_opening = "A1 is"

[[pairwise.exemplars]]
prompt = "example question"
first = "example first"
second = "example second"
rationale = "A1 is worse."
label = "2"

[score]
preamble = "Score it."
sample = "Q: {{ prompt }} A: {{ response }}"
ending = "SCORE:"
'''


@pytest.fixture
def own(tmp_path):
    """Writes a task file, with parts of it replaced, and returns its path."""

    def write(*replaced, name="own.toml", text=OWN):
        for old, new in replaced:
            assert old in text
            text = text.replace(old, new, 1)
        path = tmp_path / name
        path.write_text(text)
        return str(path)

    return write
