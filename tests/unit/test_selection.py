"""Which tests run: what tests/support/selection.py and this folder's conftest do."""

import pytest

pytest_plugins = ["pytester"]

SKIPPED = """
import pytest

@pytest.fixture
def program():
    pytest.skip("no program")

def test_itself():
    pytest.skip("no room")

@pytest.mark.skip(reason="no mark")
def test_by_mark(): ...

@pytest.mark.skipif(True, reason="no condition")
def test_by_condition(): ...

def test_by_fixture(program): ...

@pytest.mark.xfail(reason="a known defect")
def test_expected_failure():
    assert False

@pytest.mark.xfail(run=False, reason="it would hang")
def test_expected_hang(): ...

@pytest.mark.only_if(False)
def test_elsewhere(): ...

@pytest.mark.only_if(True)
def test_here(): ...
"""

REASONS = ("no room", "no mark", "no condition", "no program")


def run(pytester: pytest.Pytester) -> pytest.RunResult:
    # pytest-asyncio would ask for a setting of its own.
    return pytester.runpytest("-p", "tests.support.selection", "-p", "no:asyncio")


@pytest.mark.parametrize("value", ["1", "0", None])
def test_skips_are_failures_in_ci(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, value: str | None
) -> None:
    """Each says why; an expected failure stays one, and other tests are not collected."""
    monkeypatch.delenv("AIOABORT_TEST_NO_SKIPS", raising=False)
    if value is not None:
        monkeypatch.setenv("AIOABORT_TEST_NO_SKIPS", value)
    pytester.makepyfile(SKIPPED)

    result = run(pytester)

    skips = {"errors": 3, "failed": 1} if value == "1" else {"skipped": 4}
    result.assert_outcomes(passed=1, xfailed=2, deselected=1, **skips)
    if value == "1":
        for reason in REASONS:
            result.stdout.fnmatch_lines(f"*NO_SKIPS is set*skipped*{reason}*")


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        ("pytest.importorskip('no_such_module')", "no_such_module"),
        ("pytest.skip('no server', allow_module_level=True)", "no server"),
    ],
)
def test_skips_at_collection_are_failures_in_ci(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, module: str, reason: str
) -> None:
    """A module that is skipped as a whole is an error."""
    pytester.makepyfile(f"import pytest\n{module}")
    monkeypatch.delenv("AIOABORT_TEST_NO_SKIPS", raising=False)
    run(pytester).assert_outcomes(skipped=1)

    monkeypatch.setenv("AIOABORT_TEST_NO_SKIPS", "1")
    result = run(pytester)

    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(f"*NO_SKIPS is set*skipped*{reason}*")


@pytest.mark.parametrize("fixture", ["server", "dsn", "empty_dsn"])
def test_no_unit_test_has_a_server(
    request: pytest.FixtureRequest, fixture: str
) -> None:
    """A test of this folder that asks for a database fails."""
    with pytest.raises(pytest.fail.Exception, match="tests/unit starts no server"):
        request.getfixturevalue(fixture)
