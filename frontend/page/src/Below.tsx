import { useQueries } from "@tanstack/react-query";
import { memo, useEffect, useRef } from "react";
import { changesQueryOptions, type ETLClient, figuresQueryOptions, type Status, tableQueryOptions } from "../../src";
import { Activity } from "./Activity";
import { Calendar } from "./Calendar";
import { Changes } from "./Changes";
import { Engineers } from "./Details";
import { Figures } from "./Figures";
import { Coming, OneByOne } from "./later";
import type { Outlook } from "./state";
import type { Titles } from "./words";

interface Props {
  client: ETLClient;
  isAdmin: boolean;
  status: Status;
  titles: Titles;
  outlook: Outlook;
  /** All of it is shown. */
  onEnd: () => void;
}

/** What stands below the strip and its buttons. It waits for the first answers, because a part that grows later moves those below. */
export const Below = memo(function Below({ client, isAdmin, status, titles, outlook, onEnd }: Props) {
  const { now } = outlook;
  const answered = useAnswered(client, status);
  // Once it is shown, it stays.
  const ready = useRef(false);
  ready.current ||= answered;
  if (!ready.current) return <Coming />;
  return (
    <OneByOne>
      {[
        <Figures key="figures" {...{ client, status, outlook }} />,
        <Changes key="changes" {...{ client, status, titles, now }} />,
        <Calendar key="calendar" {...{ client, status, titles }} />,
        <Activity key="activity" extractions={status.recent_activity} {...{ titles, now }} />,
        <Engineers key="engineers" {...{ client, status, isAdmin, now }} />,
        <End key="end" onEnd={onEnd} />,
      ]}
    </OneByOne>
  );
});

function End({ onEnd }: Pick<Props, "onEnd">) {
  useEffect(onEnd, [onEnd]);
  return null;
}

/** Whether each question has an answer, or has failed once. */
function useAnswered(client: ETLClient, { tables }: Status): boolean {
  const questions = tables.flatMap(({ table }) => [
    tableQueryOptions(client, table),
    changesQueryOptions(client, table),
  ]);
  return useQueries({ queries: [figuresQueryOptions(client), ...questions], combine: isAnswered });
}

function isAnswered(found: { isFetched: boolean; failureCount: number }[]): boolean {
  return found.every(({ isFetched, failureCount }) => isFetched || failureCount > 0);
}
