from magic141.artifacts.fingerprint import module_closure
from tasks.pipeline import STAGES
from tasks.stage import NOT_IN_KEY


def test_every_module_that_keys_leave_out_would_otherwise_be_in_one() -> None:
    modules = [module for stage in STAGES for module in stage.modules]
    for name in NOT_IN_KEY:
        assert name in module_closure(modules, {*NOT_IN_KEY} - {name})
