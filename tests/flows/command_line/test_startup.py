import gc

from flows.command_line.startup import uncollected


def test_what_was_imported_meanwhile_is_left_to_the_end_of_the_program() -> None:
    try:
        with uncollected():
            assert not gc.isenabled()
        assert gc.isenabled()
        assert gc.get_freeze_count() > 0
    finally:
        gc.unfreeze()
