"""The gateway to Dagster's GraphQL, for the API's route and for Dagster's UI. It checks who asks, for what, and how often.

The module `graphql` decides what a document may do. A caller of the role `refresh` may end only the runs that it may launch;
the gateway looks them up first. For a document that changes something, the log has a line before and a line after the call.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from starlette.exceptions import HTTPException
from starlette.responses import Response

from pulso_etl.access import permits
from pulso_etl.access.tokens import Caller, Role
from pulso_etl.api import graphql
from pulso_etl.api.access import Gatekeeper, demand
from pulso_etl.api.bodies import StrictRequest
from pulso_etl.api.dagster_client import DagsterClient
from pulso_etl.api.graphql import LIMITS, DocumentLimits, Verdict
from pulso_etl.sync.errors import LaunchForbidden

audit = logging.getLogger("pulso_etl.audit")
Document = dict[str, Any]


@dataclass(frozen=True)
class Gateway:
    """Checks requests and passes them on to Dagster."""

    dagster: DagsterClient
    gatekeeper: Gatekeeper
    limits: DocumentLimits = LIMITS

    async def answer(self, request: StrictRequest, caller: Caller) -> Response:
        """Dagster's answer to a request, or to an array of requests. Raises HTTPException and DagsterUnavailable."""
        documents, batch = await documents_of(request)
        verdicts = await self.admit(documents, caller)
        answers = []
        for document, verdict in zip(documents, verdicts, strict=True):
            _note(verdict, caller, "asks for")
            try:
                answers.append(await self.dagster.post(document))
            except Exception as error:
                _note(verdict, caller, "got no answer", type(error).__name__)
                raise
            _note(verdict, caller, "got the answer", str(answers[-1].status_code))
        if batch:
            return Response(b"[" + b",".join(answer.content for answer in answers) + b"]", media_type="application/json")
        return Response(answers[0].content, answers[0].status_code, media_type="application/json")

    async def admit(self, documents: Sequence[Document], caller: Caller) -> list[Verdict]:
        """The verdicts on the documents. Raises HTTPException if the caller may not do this, and DagsterUnavailable."""
        try:
            verdicts = [graphql.verdict_on(document["query"], document["variables"], self.limits) for document in documents]
        except graphql.DocumentRefused as error:
            raise HTTPException(400, str(error)) from None
        except LaunchForbidden as error:
            audit.warning("graphql: %s was refused: %s", caller.name, error)
            raise HTTPException(403, str(error)) from None
        demand(caller, max(verdict.role for verdict in verdicts))
        if caller.role < Role.ADMIN:
            for verdict in verdicts:
                await self._demand_ends(verdict, caller)
        if counted := sum(verdict.counted for verdict in verdicts):
            await self.gatekeeper.count_launches(caller, counted)
        return verdicts

    async def _demand_ends(self, verdict: Verdict, caller: Caller) -> None:
        """Raises HTTPException 403 if the caller would end a run that it may not launch."""
        runs = await self.dagster.runs(runIds=list(verdict.runs_ended)) if verdict.runs_ended else []
        launched = [(run.job, run.assets) for run in runs]
        launched += [found for one in verdict.backfills_ended if (found := await self.dagster.backfill(one)) is not None]
        for job, assets in launched:
            try:
                demand(caller, permits.role_of_job(job, assets))
            except LaunchForbidden as error:
                raise HTTPException(403, f"{caller.name} may end only runs that it may launch: {error}") from None


async def documents_of(request: StrictRequest) -> tuple[list[Document], bool]:
    """The documents of a request, and whether they came as an array. Raises HTTPException if the body is not GraphQL in JSON."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise HTTPException(415, "send JSON, with the header Content-Type: application/json")
    given = await request.json()
    documents = given if isinstance(given, list) else [given]
    if not 1 <= len(documents) <= graphql.MAXIMUM_DOCUMENTS:
        raise HTTPException(400, f"1 to {graphql.MAXIMUM_DOCUMENTS} documents may come together")
    return [as_document(document) for document in documents], isinstance(given, list)


def as_document(given: Any) -> Document:
    """The query, its variables and the name of its operation. Other fields are dropped. Raises HTTPException."""
    fields = given if isinstance(given, dict) else {}
    query, variables, name = (fields.get(key) for key in ("query", "variables", "operationName"))
    if not isinstance(query, str) or not isinstance(variables, dict | None) or not isinstance(name, str | None):
        raise HTTPException(400, "a request is an object with query (text), variables (object) and operationName (text)")
    return {"query": query, "variables": variables, "operationName": name}


def _note(verdict: Verdict, caller: Caller, *words: str) -> None:
    if verdict.mutations:
        done = ", ".join((*verdict.mutations, *verdict.runs_ended, *verdict.backfills_ended))[:500]
        audit.info("graphql: %s %s: %s, %d launched at most", caller.name, " ".join(words), done, verdict.launches)
