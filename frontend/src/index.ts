export { type ClientOptions, createClient, type ETLClient, type Role, type Session } from "./client";
export { ETLError } from "./errors";
export { applyEvent, type Connection, type Listening, type StatusEvent } from "./events";
export { type Following, failure, follow } from "./follow";
export {
  type ETLEvents,
  ETLProvider,
  type ETLRefresh,
  type ETLStatus,
  useETLEvents,
  useETLRefresh,
  useETLStatus,
} from "./hooks";
export type { RefreshRequest, Transport } from "./transport";
export type * from "./types";
