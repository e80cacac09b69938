"""A pipeline: the stages of a file one after another, and of these only what is not done yet.

::

    OUT/NAME/pipeline.json     the stages: status, seconds, key; the MLflow run
    OUT/NAME/STAGE/            the run directory of a stage, as its verb writes it
    OUT/NAME/STAGE/stage.json  written last: what the stage depended on, and the key that is made of it
    OUT/NAME/.previous/STAGE/  what a stage had made before it was run again

A stage is finished when its stage.json is there. It is run again when the key is another one: a hash of its verb, its
settings, and the contents of all local files and outputs of earlier stages that these name.
"""

from __future__ import annotations

from konomi.pipeline.run import run_pipeline
from konomi.pipeline.steps import Step, plan

__all__ = ["Step", "plan", "run_pipeline"]
