import threading

import pytest

from demucs_lightning.separator.background import Behind, ahead, following


def test_items_are_made_ahead_and_in_order():
    made, here = [], threading.get_ident()

    def items():
        for number in range(20):
            made.append(threading.get_ident())
            yield number

    found = ahead(items(), depth=3)
    assert next(found) == 0
    assert len(made) <= 1 + 3 + 1
    assert [*found] == [*range(1, 20)]
    assert here not in made


def test_an_error_comes_where_it_is_due():
    def items():
        yield 1
        raise ValueError("broken")

    found = ahead(items())
    assert next(found) == 1
    with pytest.raises(ValueError, match="broken"):
        next(found)


def test_nothing_goes_on_after_the_last_use():
    closed = []

    def items():
        try:
            while True:
                yield 1
        finally:
            closed.append(True)

    before = threading.active_count()
    found = ahead(items())
    next(found)
    found.close()
    del found
    assert threading.active_count() == before


def test_calls_follow_in_order_and_in_a_thread():
    called, here = [], threading.get_ident()

    def call(number):
        called.append(threading.get_ident())
        return 10 * number

    made = []
    found = following((made.append(n) or n for n in range(20)), call, depth=3)
    assert next(found) == 0
    assert made == [0, 1, 2, 3]
    assert [*found] == [*range(10, 200, 10)]
    assert here not in called
    assert len(called) == 20


@pytest.mark.parametrize("depth", [1, 2, 9])
def test_an_error_of_a_call_comes_where_it_is_due(depth):
    def call(number):
        if number == 3:
            raise OSError("full")
        return number

    found, got = following(range(20), call, depth), []
    with pytest.raises(OSError, match="full"):
        got.extend(found)
    assert got == [0, 1, 2]


def test_an_error_of_the_items_comes_through():
    def items():
        yield 1
        yield 2
        raise KeyboardInterrupt

    before = threading.active_count()
    found = following(items(), abs, depth=1)
    assert next(found) == 1
    with pytest.raises(KeyboardInterrupt):
        next(found)
    del found
    assert threading.active_count() == before


def test_groups_of_calls_run_side_by_side_and_in_order():
    seen, together = [], threading.Barrier(2, timeout=10)

    def call(number):
        together.wait()
        seen.append(number)

    with Behind(2) as behind:
        for number in range(5):
            behind.run([lambda n=number: call(n)] * 2)
    assert seen == [n for n in range(5) for _ in range(2)]


def broken():
    raise OSError("full")


@pytest.mark.parametrize("groups", [1, 2])
def test_what_a_call_raises_is_raised(groups):
    def run():
        with Behind(1) as behind:
            for _ in range(groups):
                behind.run([broken])

    with pytest.raises(OSError, match="full"):
        run()


def test_an_error_of_the_caller_comes_first():
    def run():
        with Behind(1) as behind:
            behind.run([broken])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run()
