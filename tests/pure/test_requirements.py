"""Every MUST and SHOULD has a place in the code and a test, and the tool that says so can fail."""

from __future__ import annotations

import ast

import pytest

from quicferry.paths import CHECKOUT
from quicferry.quic._aioquic.connection import HookedConnection
from tools import requirements as tool

SPECIFICATION = """
## 3. Rules

The key words MUST and SHOULD are explained elsewhere.

### 3.1. One

Nothing here. An endpoint MUST do
this; it SHOULD NOT do that. It may rest.

```
A picture MUST be left out.
```

* **Item**: the third MUST be found, too.
"""


def mention(words: str, *, in_test: bool = False, section: str = "3.1") -> tool.Mention:
    return tool.Mention("wire-format", section, words, "file.py function", in_test)


def test_each_requirement_of_the_specification_has_code_and_a_test() -> None:
    traced, stray = tool.trace(tool.all_requirements(), tool.all_mentions())
    assert tool.faults(traced, stray) == []
    own = [each for each in traced if each.requirement.document == "wire-format"]
    assert len(own) >= 20
    assert all(each.requirement.reason is None and each.requirement.by is None for each in own)


def test_what_aioquic_is_said_to_keep_is_a_function_of_aioquic() -> None:
    named = [each.by.partition(",")[0] for each in tool.all_requirements() if each.by]
    assert named and all(callable(getattr(HookedConnection, name)) for name in named)


def test_what_is_not_kept_has_a_reason_in_words() -> None:
    reasons = [each.reason for each in tool.all_requirements() if each.reason is not None]
    assert all(len(reason.split()) >= 2 for reason in reasons)


def test_the_specification_is_cut_into_its_sentences() -> None:
    found = list(tool.of_specification(SPECIFICATION))
    assert [each.section for each in found] == ["3.1", "3.1"]
    assert [each.text for each in found] == [
        "An endpoint MUST do this; it SHOULD NOT do that.",
        "**Item**: the third MUST be found, too.",
    ]


def test_a_sentence_without_code_or_test_is_told() -> None:
    sentences = list(tool.of_specification(SPECIFICATION))
    traced, stray = tool.trace(sentences, [mention("MUST do this"), mention("third MUST", in_test=True)])
    assert [each.missing for each in traced] == [["test"], ["code"]]
    assert len(tool.faults(traced, stray)) == 2
    traced, stray = tool.trace(sentences, [])
    assert [each.missing for each in traced] == [["code", "test"]] * 2


@pytest.mark.parametrize(
    ("words", "section", "how"),
    [
        ("MUST do something else", "3.1", "no sentence has"),
        ("MUST do this", "3.2", "no sentence has"),
        ("MUST", "3.1", "more than one sentence has"),
    ],
)
def test_a_comment_that_leads_nowhere_is_told(words: str, section: str, how: str) -> None:
    _, stray = tool.trace(list(tool.of_specification(SPECIFICATION)), [mention(words, section=section)])
    assert len(stray) == 1
    assert how in stray[0]


def test_comments_are_found_where_they_stand() -> None:
    lines = [
        "class Role:",
        "    def send(self):",
        '        """Sends."""',
        "        #: wire-format 3.1: MUST do this",
        "        #: RFC 9000 8.2.1: MUST use unpredictable data",
        "        #: an attribute's comment, as usual",
        "        return 1",
    ]
    source = "\n".join(lines)
    ast.parse(source)
    found = list(tool.mentions(source, "role.py", in_test=False))
    assert [(each.document, each.section, each.words) for each in found] == [
        ("wire-format", "3.1", "MUST do this"),
        ("RFC 9000", "8.2.1", "MUST use unpredictable data"),
    ]
    assert {each.where for each in found} == {"role.py send"}


def test_a_sentence_of_an_rfc_without_a_keyword_is_refused() -> None:
    row = '[[requirement]]\ndocument = "RFC 9000"\nsection = "9"\ntext = "It may."\n'
    with pytest.raises(ValueError, match="no MUST"):
        list(tool.of_rfcs(row))


def test_the_table_is_printed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["requirements.py"])
    assert tool.main() == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "| where | requirement | code | test |"
    assert any("`quicferry/quic/policy.py denies`" in line for line in lines)
    monkeypatch.setattr(tool, "all_mentions", list)
    monkeypatch.setattr("sys.argv", ["requirements.py", "--check"])
    assert tool.main() == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "no code and no test for" in printed.err


def test_the_folders_that_are_read_exist() -> None:
    assert all((CHECKOUT / folder).is_dir() for folder in (*tool.CODE, *tool.TESTS))
