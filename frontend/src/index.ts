export {
  type ChangesQuery,
  type ClientOptions,
  createClient,
  type ETLClient,
  type Role,
  type Session,
  type UndoQuery,
} from "./client.js";
export { ETLError, type ETLErrorKind, failure } from "./errors.js";
export { applyEvent, type Connection, type DataChange, type Listening, type StatusEvent } from "./events.js";
export {
  type ETLEvents,
  ETLProvider,
  type ETLRefresh,
  type ETLStatus,
  type ETLTable,
  type RefreshOptions,
  useETLClient,
  useETLEvents,
  useETLRefresh,
  useETLStatus,
  useRefresh,
  useTable,
} from "./hooks.js";
export { etlKeys } from "./keys.js";
export {
  type ChangesQueryOptions,
  changesQueryOptions,
  type ETLQueryOptions,
  type FiguresQueryOptions,
  figuresQueryOptions,
  type Polling,
  type RefreshMutationOptions,
  type RefreshQueryOptions,
  refreshMutationOptions,
  refreshQueryOptions,
  type StatusQueryOptions,
  statusQueryOptions,
  type TableQueryOptions,
  tableQueryOptions,
} from "./queries.js";
export type { RefreshRequest, Transport } from "./transport.js";
export type * from "./types.js";
