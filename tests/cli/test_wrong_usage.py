"""What a person mistypes: one line that says what to pass instead, exit 2, and nothing is begun or left."""

import pytest

from concur_thp import cli
from concur_thp.errors import unknown


@pytest.mark.parametrize("arguments, said", [
    (["stres"], "there is no command 'stres': did you mean stress?"), (["zzz"], "pass one of stress, races, "),
    (["races", "shw"], "no command races 'shw': did you mean show?"), (["rules", "zzz"], "pass one of show"),
    (["explore"], "such as fault_vs_collapse, or `all`"), (["explore", "zzz"], "`concur-thp races` lists them"),
    (["explore", "fault_vs_colapse"], "did you mean fault_vs_collapse or"), (["explore", "all", "all"], "extra argument"),
    (["races", "run", "fault_vs_colapse"], "did you mean fault_vs_collapse or"), (["races", "show", "zzz"], "1 to 30"),
    (["stress", "--switch", "max_ptes_none=3"], "did you mean khugepaged/max_ptes_none?"),
    (["stress", "--switch", "zzz"], "the switches are enabled, "),
    (["stress", "--memory", "1K"], "--memory 1K: with --order 9 pass at least 24M"),
    (["stress", "--memory", "99999T"], "--memory 99999T: pass at most 1T"),
    (["stress", "--swap", "99999T"], "--swap 99999T: with --order 9 pass 8M to 1T"),
    (["stress", "--reproduce", "-1"], "such as 20, or 0"), (["stress", "."], "recording .: that is a directory"),
    (["stress", "--run-dir", ""], "--run-dir: pass a directory"),
    (["stress", "--run-dir", "/proc/x"], "--run-dir /proc/x: "),
    (["break", "R18a", "--run-dir", "/dev/null/x"], "can be written"),
    (["explore", "zero_vs_zero", "--run-dir", "/proc/x"], "can be written"),
    (["races", "run", "1", "--run-dir", "/proc/x"], "can be written"),
    (["replay", "nofile"], "neither a token"), (["replay", "."], "neither a token"),
    (["replay", "thp1-abc"], "the token is damaged"),
    (["replay", __file__], "no token (thp1-...) is in that file"),
    (["compare", "--program", ""], "pass steps with semicolons between"),
    (["compare", "--program", "0 mmap a b c"], "'a' is not a whole number; protections are none, r, rw"),
    (["compare", "--program", "x mmap 0 1 rw"], "'x' is not a whole number"),
    (["compare", "--program", "0 store -1 1"], "'-1' is not a whole number"),
    (["bench", "--only", "fault_pt"], "did you mean fault_pte"), (["bench", "--only", "zzz"], "pass --only with one of"),
])
def test_wrong_usage_is_one_line_and_leaves_nothing(capsys, monkeypatch, tmp_path, arguments, said):
    monkeypatch.chdir(tmp_path)
    assert cli.run(arguments) == 2
    out, err = capsys.readouterr()
    assert out == "" and said in err and err.startswith("concur-thp: ") and err.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("switch", ["zzz=1", "enabled=perhaps", "khugepaged/max_ptes_none=512", "defrag"])
def test_a_switch_is_looked_at_before_a_machine_is_built(capsys, monkeypatch, tmp_path, switch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("stress.main.Machine", None)
    assert cli.run(["stress", "--switch", switch]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_binary_file_is_no_token(capsys, tmp_path):
    path = tmp_path / "token.txt"
    path.write_bytes(bytes(range(256)))
    assert cli.run(["replay", str(path)]) == 2
    assert "no token" in capsys.readouterr().err


def test_a_token_cut_short_is_damaged(capsys, tmp_path):
    from stress.exploring.job import Failure, Job
    from stress.exploring.token import Token

    whole = str(Token.of(Job("fault_vs_fault"), Failure("bug", "nothing", (), seed=1)))
    for length in range(len("thp1-"), len(whole), 7):
        assert cli.run(["replay", whole[:length]]) == 2
        assert capsys.readouterr().err.startswith("concur-thp: the token is damaged: copy it whole")


def test_only_similar_names_are_said():
    names = ("collapse_vs_exit", "split_vs_exit", "store")
    assert str(unknown("scenario", "split_vs_exti", names, "look")).endswith("did you mean split_vs_exit?")
    assert str(unknown("scenario", "STORE", names, "look")).endswith("did you mean store?")
    assert str(unknown("scenario", "zzz", names, "look")).endswith("'zzz': look")


@pytest.mark.parametrize("group", [[], ["races"], ["rules"]])
def test_a_list_of_commands_says_of_each_all_that_it_has_to_say(capsys, monkeypatch, group):
    monkeypatch.setenv("COLUMNS", "80")
    assert cli.run([*group, "--help"]) == 0
    out = capsys.readouterr().out
    assert "Commands:" in out and "..." not in out.partition("Commands:")[2]
