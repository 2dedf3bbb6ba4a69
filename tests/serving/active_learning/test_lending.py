"""Loans of volumes, and volumes that annotators skip or mark as bad."""

import pytest

from lib.common.errors import UserError
from lib.serving.active_learning.lending import Lending


class Clock:
    now_s = 1000.0

    def __call__(self):
        return self.now_s


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def lending(tmp_path, clock):
    return Lending(tmp_path / "lending", 15, clock)


def test_an_untouched_volume_is_lent_to_one_client_for_some_minutes(lending, clock):
    assert lending.lend("a", "anna") and lending.lend("a", "anna") and not lending.lend("a", "ben")
    clock.now_s += 15 * 60 + 1
    assert lending.lend("a", "ben") and not lending.lend("a", "anna")


def test_a_client_that_is_heard_of_keeps_its_loan(lending, clock):
    lending.lend("a", "anna")
    clock.now_s += 10 * 60
    lending.lend("a", "anna")
    clock.now_s += 10 * 60
    assert not lending.lend("a", "ben")


def test_a_client_has_one_loan_at_a_time(lending):
    lending.lend("a", "anna")
    lending.lend("b", "anna")
    assert lending.lend("a", "ben") and set(lending.state()["loans"]) == {"a", "b"}


def test_another_process_and_a_new_one_after_a_kill_agree(lending, tmp_path, clock):
    lending.lend("a", "anna")
    lending.skip("b", "anna", "not  my\norgan")
    lending.reject("c", "ben")
    other = Lending(tmp_path / "lending", 15, clock)
    assert not other.lend("a", "ben") and other.state() == lending.state()
    assert other.state()["skipped"]["b"]["anna"]["reason"] == "not my organ"


def test_a_chosen_volume_is_lent_unless_somebody_has_it_or_it_is_bad(lending):
    lending.skip("a", "anna")
    lending.choose("a", "anna")
    assert lending.state()["skipped"] == {} and not lending.lend("a", "ben")
    with pytest.raises(UserError, match="lent to another annotator for 15 more minutes"):
        lending.choose("a", "ben")
    lending.reject("b", "anna", "motion")
    with pytest.raises(UserError, match=r"marked as bad \(motion\)"):
        lending.choose("b", "ben")


def test_skips_and_rejections_end_loans_and_can_be_taken_back(lending):
    lending.lend("a", "anna")
    lending.skip("a", "anna")
    assert lending.state()["loans"] == {}
    lending.lend("a", "ben")
    lending.reject("a", "anna")
    assert lending.state()["loans"] == {} and lending.state()["rejected"]["a"]["client"] == "anna"
    lending.take_back("a", "anna")
    assert lending.state() == {"loans": {}, "skipped": {}, "rejected": {}}


def test_what_was_done_to_an_exchanged_image_does_not_count(tmp_path):
    digests = {"a": "1", "b": "2", "c": "3"}
    lending = Lending(tmp_path, digest_of=lambda image: digests.get(image, ""))
    lending.skip("a", "anna")
    lending.reject("b", "anna")
    lending.lend("c", "anna")
    digests |= {"a": "4", "b": "5", "c": "6"}
    assert lending.state() == {"loans": {}, "skipped": {}, "rejected": {}}


def test_a_folder_that_cannot_be_written_to_is_only_logged(tmp_path, caplog, clock):
    (tmp_path / "file").write_text("no folder")
    lending = Lending(tmp_path / "file" / "lending", 15, clock)
    assert lending.lend("a", "anna") and not lending.lend("a", "ben") and "Cannot write" in caplog.text


@pytest.mark.parametrize("content", ["", "[]", '{"loans": []}'])
def test_a_damaged_file_counts_as_empty(lending, tmp_path, content):
    lending.lend("a", "anna")
    (tmp_path / "lending" / "volumes.json").write_text(content)
    assert lending.lend("a", "ben")
