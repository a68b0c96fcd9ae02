from __future__ import annotations

import html
import re

from kvshift.paper.report import render
from kvshift.paper.reproduce import reproduce


def test_the_page_holds_claims_numbers_and_verdicts(make_experiment, only, tmp_path) -> None:
    one, other = make_experiment("one"), make_experiment("other")
    only(one, other)
    page = render(reproduce([one], "small", tmp_path, print))
    assert "Squares are squares &amp; more." in page
    assert "Squares were &lt;taken&gt;." in page
    assert "3 of 3 squares" in page
    assert '<td class="verdict reproduced">reproduced</td>' in page
    assert "Rule: Reproduced if all are." in page
    assert "Not done here: other." in page
    assert "square-4" in page
    assert "number 4" in page


def test_the_page_asks_for_nothing_outside(make_experiment, only, tmp_path) -> None:
    one = make_experiment("one")
    only(one)
    page = render(reproduce([one], "tiny", tmp_path, print))
    assert "Scale tiny shows that everything works; it decides nothing." in page
    assert "Not done here" not in page
    addresses = re.findall(r"(?:src|href)=\"([^\"]*)\"", page)
    assert addresses
    assert all(address.startswith(("data:image/png;base64,", "#")) for address in addresses)
    assert "default-src 'none'" in html.unescape(page)
