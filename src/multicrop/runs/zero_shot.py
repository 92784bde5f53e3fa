"""Zero-shot classification: the aggregator decides."""

from multicrop.aggregators import Logits, Views
from multicrop.runs.session import Session
from multicrop.runs.task import BankTask, task_builder


class ZeroShotTask(BankTask):
    """Predicts with the aggregator."""

    def final_logits(self, views: Views, aggregated: Logits) -> Logits:
        """The aggregator's logits."""
        return aggregated


@task_builder()
def build(session: Session) -> ZeroShotTask:
    """The task over the parts of a run."""
    return ZeroShotTask(session.scorer)
