"""The doctor over HTTP. It runs in a process of its own: it needs BigQuery's client and Dagster's storage, which the API does not
keep in memory."""

from __future__ import annotations

import asyncio
import json
import sys
from asyncio.subprocess import PIPE

from fastapi import HTTPException

from pulso_etl.api.models import Checkup, Finding

SECONDS = 180.0
"""Limit of all checks together. A part that does not answer takes up to half a minute."""
_one_at_a_time = asyncio.Lock()


async def checkup() -> Checkup:
    """What `pulso-etl doctor` finds. Raises HTTPException 503 if it does not come to an end."""
    async with _one_at_a_time:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "pulso_etl", "doctor", "--json"), stdin=asyncio.subprocess.DEVNULL, stdout=PIPE, stderr=PIPE
        )
        try:
            async with asyncio.timeout(SECONDS):
                told, _ = await process.communicate()
        except TimeoutError:
            raise HTTPException(503, f"the doctor did not end within {SECONDS:.0f} s; run `pulso-etl doctor`") from None
        finally:
            # Also if the caller has left.
            if process.returncode is None:
                process.kill()
                await process.wait()
    try:
        findings = [Finding.model_validate(one) for one in json.loads(told)]
    except ValueError:
        raise HTTPException(503, "the doctor ended without findings; run `pulso-etl doctor`, or look at the API's log") from None
    return Checkup(ok=all(one.ok for one in findings), findings=findings)
