"""What pages are made of: counts, money and numbers as people read them."""

import re

import pytest
from streamlit.testing.v1 import AppTest

from dashboards.parts import counted, spread, usd, usd_interval


@pytest.mark.parametrize(("n", "said"), [(0, "0 rows"), (1, "1 row"), (2, "2 rows"), (1234, "1,234 rows")])
def test_a_count_has_its_noun_in_the_right_number(n: int, said: str) -> None:
    assert counted(n, "row") == said


@pytest.mark.parametrize(
    ("amount", "said"),
    [
        (None, "–"),
        (0.0, "$0.0000"),
        (0.00003, "$0.000030"),
        (0.000456, "$0.00046"),
        (0.0012, "$0.0012"),
        (0.5, "$0.5000"),
        (1234.5, "$1,234.50"),
    ],
)
def test_an_amount_is_never_rounded_to_nothing(amount: float | None, said: str) -> None:
    assert usd(amount) == said


def test_an_interval_of_an_amount_has_the_amounts_places() -> None:
    assert usd_interval((0.00001, 0.00002), times=10) == "[$0.00010, $0.00020]"
    assert usd_interval((0.1234, 0.2345)) == "[$0.1234, $0.2345]"
    assert usd_interval(None) == "not known"


def test_large_numbers_of_a_table_are_written_out() -> None:
    found = "[{'s': 12345.6}, {'s': 1000.0}, {'s': 999.44}, {'s': 0.01234567}]"
    test = AppTest.from_string(
        f"from dashboards.parts import table\ntable({found}, {{'s': 'Seconds'}}, name='t')"
    ).run()
    assert not test.exception
    (block,) = (part.proto.body for part in test.get("html"))
    assert re.findall(r"<td[^>]*>([^<]+)<", block) == ["12,345.6", "1,000.0", "999.4", "0.01235"]


@pytest.mark.parametrize(
    ("ends", "domain"), [((0.0, 0.0), [-1, 1]), ((), [-1, 1]), ((0.0, -2.5), None)], ids=["zeros", "nothing", "some"]
)
def test_an_axis_of_differences_has_a_length_where_all_are_zero(
    ends: tuple[float, ...], domain: list[int] | None
) -> None:
    assert spread(ends).to_dict().get("domain") == domain
