"""The run launcher of `deploy/dagster.celery.yaml`. It needs the extra `celery`."""

from __future__ import annotations

from dagster_celery.launcher import CeleryRunLauncher


class CancelingCeleryRunLauncher(CeleryRunLauncher):
    """Dagster's own launcher, but terminated runs end as canceled.

    Otherwise they would end as failed, and Dagster's run retries would launch them again.
    """

    def terminate(self, run_id: str) -> bool:
        """Asks the run's worker to end it. False if the run is not known or has ended."""
        run = self._instance.get_run_by_id(run_id)
        if run is None or run.is_finished:
            return False
        self._instance.report_run_canceling(run)
        return super().terminate(run_id)
