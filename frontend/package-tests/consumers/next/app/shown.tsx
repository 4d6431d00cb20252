"use client";

import { useETLRefresh, useETLStatus } from "pulso-etl";

export function Shown() {
  const { status } = useETLStatus();
  const { triggerRefresh, isRefreshing } = useETLRefresh();
  return (
    <button type="button" disabled={isRefreshing} onClick={() => void triggerRefresh()}>
      {status ? `${status.running} tables run` : "loading"}
    </button>
  );
}
