"""The page beside this file names tests that exist, and has a row for every defect."""

import re
from pathlib import Path

HERE = Path(__file__).parent
PAGE = (HERE / "README.md").read_text()
TESTS = {
    name
    for path in HERE.parent.rglob("test_*.py")
    for name in re.findall(r"^(?:async )?def (test_\w+)", path.read_text(), re.MULTILINE)
}


def test_every_test_that_the_page_names_exists():
    named = set(re.findall(r"`(test_\w+)`", PAGE))
    assert named - TESTS == set()


def test_every_test_that_the_page_names_with_its_file_is_there():
    named = re.findall(r"`([\w/]+\.py)::(test_\w+)`", PAGE)
    assert len(named) > 29
    for file, name in named:
        assert re.search(
            rf"^(?:async )?def {name}\(", (HERE.parent / file).read_text(), re.MULTILINE
        )


def test_every_fault_of_others_has_a_row_and_a_test():
    rows = re.findall(r"^\| F(\d+) \|.*\| `[\w/]+\.py::test_\w+`.* \|$", PAGE, re.MULTILINE)
    assert rows == [str(n) for n in range(1, 30)]


def test_every_defect_has_a_row():
    assert re.findall(r"^\| (D\d+) \|", PAGE, re.MULTILINE) == [f"D{n}" for n in range(1, 20)]


def test_every_test_of_a_defect_is_on_the_page():
    assert {name for name in TESTS if re.match(r"test_d\d\d_", name)} <= set(
        re.findall(r"`(test_\w+)`", PAGE)
    )
