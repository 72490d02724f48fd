import pytest

from vlm_jax.errors import UserError
from vlm_jax.evaluation.compare import compare
from vlm_jax.evaluation.results import write_results
from vlm_jax.evaluation.runner import evaluate
from vlm_jax.evaluation.statistics import clustered_mean


@pytest.fixture
def written(lab, tmp_path):
    def write(directory, blind_to, name="colors", **fields):
        source = lab.Source(**{"records": 30} | fields)
        result = evaluate(lab.Task(name, source), lab.Looker(blind_to), controls=False)
        write_results(tmp_path / directory, directory, [result])
        return result

    write.path = tmp_path
    return write


def test_differences_are_paired_by_question_and_clustered_by_picture(written):
    a, b = written("a", blind_to=range(9)), written("b", blind_to=range(6, 11))
    whole, *groups = compare(written.path / "a", written.path / "b")
    assert (whole.task, whole.group) == ("colors", "")
    assert (whole.a, whole.b) == pytest.approx((21 / 30, 25 / 30))
    assert (whole.only_a, whole.only_b) == (4, 12)
    assert [group.group for group in groups] == ["color", "yes_no", "yes_no_color"]
    differences = [y.score - x.score for x, y in zip(a.answers, b.answers, strict=True)]
    assert whole.difference == clustered_mean(differences, [x.picture for x in a.answers], bounds=(-1, 1))
    assert whole.difference.score == pytest.approx(4 / 30)
    assert 0.1 < whole.p_value < 0.3
    back = compare(written.path / "b", written.path / "a")[0]
    assert back.difference.score == pytest.approx(-4 / 30)
    assert back.p_value == pytest.approx(whole.p_value)


def test_a_result_against_itself_shows_no_difference(written):
    written("a", blind_to=(1,))
    for comparison in compare(written.path / "a", written.path / "a" / "eval.json"):
        assert comparison.difference.score == 0
        assert comparison.difference.low < 0 < comparison.difference.high
        assert comparison.p_value == 1


def test_results_that_cannot_be_paired_are_refused(written):
    written("a", blind_to=())
    written("b", blind_to=(), name="other")
    with pytest.raises(UserError, match=r"no task in common \(colors; other\)"):
        compare(written.path / "a", written.path / "b")
    written("c", blind_to=(), records=20)
    with pytest.raises(UserError, match=r"not about the same questions \(60 and 40, 20 in one only\)"):
        compare(written.path / "a", written.path / "c")
    written("d", blind_to=(), languages=("ru",))
    with pytest.raises(UserError, match="not about the same questions"):
        compare(written.path / "a", written.path / "d")
