import asyncio

import pytest

from lib.serving.inference.request_queue import QueueFull, RequestQueue


def orders(requests, **limits):
    """Who got a turn, in order, when all ask at once: requests are names of clients."""
    async def ask(turns, client, done):
        async with turns.turn(client):
            await asyncio.sleep(0)
            done.append(client)

    async def all_of_them():
        turns, done = RequestQueue(**limits), []
        await asyncio.gather(*(ask(turns, c, done) for c in requests))
        assert (turns.running, turns.waiting) == (0, 0)
        return "".join(done)

    return asyncio.run(all_of_them())


@pytest.mark.parametrize("asked, answered", [
    ("a", "a"), ("aab", "aba"), ("aaaab", "abaaa"), ("aaabbbc", "abcabab"), ("abab", "abab"),
])  # fmt: skip
def test_clients_take_turns(asked, answered):
    assert orders(asked) == answered


def test_two_at_once():
    assert sorted(orders("aabb", at_once=2)) == list("aabb")


@pytest.mark.parametrize("asked, limits, own", [("aaaa", {"own": 2}, True), ("abcd", {"places": 2}, False)])
def test_a_full_queue_says_so(asked, limits, own):
    with pytest.raises(QueueFull) as refused:
        orders(asked, **limits)
    assert refused.value.own is own


def test_whoever_leaves_gives_up_the_place():
    async def run():
        turns, done = RequestQueue(), []

        async def ask(client):
            async with turns.turn(client):
                await asyncio.sleep(0.01)
                done.append(client)

        tasks = [asyncio.create_task(ask(c)) for c in "abcd"]
        await asyncio.sleep(0)
        tasks[1].cancel()  # waiting
        tasks[0].cancel()  # running
        await asyncio.gather(*tasks, return_exceptions=True)
        assert (turns.running, turns.waiting) == (0, 0)
        return "".join(done)

    assert asyncio.run(run()) == "cd"


def test_a_turn_given_to_someone_who_leaves_goes_on_to_the_next():
    async def run():
        turns, done = RequestQueue(), []

        async def ask(client):
            async with turns.turn(client):
                done.append(client)

        first = turns.turn("a")
        await first.__aenter__()
        second, third = asyncio.create_task(ask("b")), asyncio.create_task(ask("c"))
        await asyncio.sleep(0)
        await first.__aexit__(None, None, None)  # b has the turn now, but has not run yet
        second.cancel()
        await asyncio.gather(second, third, return_exceptions=True)
        assert (turns.running, turns.waiting) == (0, 0)
        return done

    assert asyncio.run(run()) == ["c"]
