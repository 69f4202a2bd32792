"""What the demo prints: for a person on stdout, or for a program, which gets one JSON line there and nothing else."""

import json

import pytest

from hub.dev.show import Outcome, Show

OUTCOMES = [
    Outcome(title="Live status", ok=True, detail="running", seconds=0.1),
    Outcome(title="A kill", ok=False, detail="not done", seconds=60.0),
]


def test_a_program_gets_the_result_alone(capsys: pytest.CaptureFixture[str]) -> None:
    show = Show(as_json=True)
    show.heading(1, "Live status")
    show.verdict(OUTCOMES[0])
    show.summary(OUTCOMES, ["no seccomp filter"])

    out, err = capsys.readouterr()
    result = json.loads(out)
    assert (result["ok"], result["lacks"]) == (False, ["no seccomp filter"])
    assert [step["title"] for step in result["steps"]] == ["Live status", "A kill"]
    assert "Live status" in err


def test_a_person_gets_the_table_and_what_the_host_lacks(
    capsys: pytest.CaptureFixture[str],
) -> None:
    Show().summary(OUTCOMES, ["no seccomp filter"])

    out, err = capsys.readouterr()
    assert "A kill" in out
    assert "- no seccomp filter" in out
    assert err == ""
