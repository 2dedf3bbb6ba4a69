"""Tests of the queue in which clients take turns."""

import asyncio

import pytest

from lib.serving.inference.request_queue import QueueFull, RequestQueue


def order_of_turns(requests, **limits):
    """Return the clients in the order of their turns when all requests come at once.

    Args:
        requests: One letter for each request, the name of its client.
        **limits: Arguments of the `RequestQueue`.
    """
    async def take_turn(queue, client, finished):
        async with queue.turn(client):
            await asyncio.sleep(0)
            finished.append(client)

    async def take_all_turns():
        queue, finished = RequestQueue(**limits), []
        await asyncio.gather(*(take_turn(queue, c, finished) for c in requests))
        assert (queue.running, queue.waiting) == (0, 0)
        return "".join(finished)

    return asyncio.run(take_all_turns())


@pytest.mark.parametrize("requests, expected", [
    ("a", "a"), ("aab", "aba"), ("aaaab", "abaaa"), ("aaabbbc", "abcabab"), ("abab", "abab"),
])  # fmt: skip
def test_clients_take_turns(requests, expected):
    assert order_of_turns(requests) == expected


def test_two_requests_run_at_the_same_time():
    assert sorted(order_of_turns("aabb", max_running=2)) == list("aabb")


@pytest.mark.parametrize("requests, limits, is_client_limit", [
    ("aaaa", {"max_waiting_per_client": 2}, True), ("abcd", {"max_waiting": 2}, False),
])  # fmt: skip
def test_a_full_queue_refuses_requests(requests, limits, is_client_limit):
    with pytest.raises(QueueFull) as refused:
        order_of_turns(requests, **limits)
    assert refused.value.is_client_limit is is_client_limit


def test_a_cancelled_request_gives_up_its_place():
    async def run():
        queue, finished = RequestQueue(), []

        async def take_turn(client):
            async with queue.turn(client):
                await asyncio.sleep(0.01)
                finished.append(client)

        tasks = [asyncio.create_task(take_turn(c)) for c in "abcd"]
        await asyncio.sleep(0)
        tasks[1].cancel()  # This one is waiting.
        tasks[0].cancel()  # This one is running.
        await asyncio.gather(*tasks, return_exceptions=True)
        assert (queue.running, queue.waiting) == (0, 0)
        return "".join(finished)

    assert asyncio.run(run()) == "cd"


def test_a_turn_that_comes_at_the_moment_of_cancellation_goes_to_the_next_client():
    async def run():
        queue, finished = RequestQueue(), []

        async def take_turn(client):
            async with queue.turn(client):
                finished.append(client)

        first = queue.turn("a")
        await first.__aenter__()
        second, third = asyncio.create_task(take_turn("b")), asyncio.create_task(take_turn("c"))
        await asyncio.sleep(0)
        await first.__aexit__(None, None, None)  # Client b has the turn now, but has not run yet.
        second.cancel()
        await asyncio.gather(second, third, return_exceptions=True)
        assert (queue.running, queue.waiting) == (0, 0)
        return finished

    assert asyncio.run(run()) == ["c"]
