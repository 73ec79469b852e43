from dataclasses import replace

from magic141.artifacts.fingerprint import module_closure
from magic141.config import PipelineConfig
from tasks.pipeline import STAGES
from tasks.stage import NOT_IN_KEY
from tests.tasks.stages import FIRST


def test_every_module_that_keys_leave_out_would_otherwise_be_in_one() -> None:
    modules = [module for stage in STAGES for module in stage.modules]
    for name in NOT_IN_KEY:
        assert name in module_closure(modules, {*NOT_IN_KEY} - {name})


def test_raising_a_stages_version_changes_its_key_and_nothing_else_in_it() -> None:
    raised = replace(FIRST, version=FIRST.version + 1)
    before, after = (stage.key(PipelineConfig(), {}) for stage in (FIRST, raised))
    assert after.digest != before.digest
    assert after.difference(before) == ["version: 1 -> 2"]
