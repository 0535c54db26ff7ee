import threading

import pytest

from demucs_lightning.separator.background import Behind, ahead


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
