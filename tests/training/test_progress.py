import pytest

from training.progress import run_bar


def test_a_line_in_a_log_has_its_end_however_long_it_is(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A container's log holds a line back until it ends; hours to go and many steps make a long one."""
    with run_bar("studio-small", shown=True) as bar:
        monkeypatch.setattr(bar, "mininterval", 0)
        news = "step 1234567, loss -10.00, 1234 audio s/s, best -inf dB, and whatever else a run has to say of itself"
        bar.set_postfix_str(news, refresh=False)
        bar.update(0.001)
        assert capsys.readouterr().err.endswith(f"{news}\n")


def test_a_rank_that_is_not_the_first_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with run_bar("studio", shown=False) as bar:
        bar.update(1.0)
    assert capsys.readouterr().err == ""
