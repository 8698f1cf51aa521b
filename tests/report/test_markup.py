import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tgsent.report.markup import code, markdown


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("plain, schön 1.5", "plain, schön 1.5"), ("<b>&", "&lt;b&gt;&amp;"),
        ("[a](javascript:x)", r"\[a\](javascript:x)"), ("a|b\nc", r"a\|b c"),
        ("![x](y)", r"\!\[x\](y)"), ("`a` *b* _c_", r"\`a\` \*b\* \_c\_"),
        ("\x1b[2J", r"\\x1b\[2J"), ("# a", r"\# a"),
    ],
)  # fmt: skip
def test_markdown(text: str, escaped: str) -> None:
    assert markdown(text) == escaped


@pytest.mark.parametrize(
    ("text", "written"),
    [("a b", "`a b`"), ("a`b", "``a`b``"), ("`", "`` ` ``"), ("a|b", r"`a\|b`"), ("a\nb", "`a b`")],
)
def test_code(text: str, written: str) -> None:
    assert code(text) == written


@given(st.text("`|<a \n"))
def test_nothing_in_code_closes_it(text: str) -> None:
    written = code(text)
    fence = re.match("`+", written)
    assert fence
    inside = written[fence.end() : -fence.end()]
    assert fence[0] not in re.findall("`+", inside)
    assert "\n" not in written


@given(st.text())
def test_no_markup_is_left(text: str) -> None:
    assert not re.search(r"(?<!\\)[<>|`*\[\]]", markdown(text).replace("\\\\", ""))
