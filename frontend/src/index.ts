export { type ClientOptions, createClient, type ETLClient, type Role, type Session } from "./client.js";
export { ETLError } from "./errors.js";
export { applyEvent, type Connection, type DataChange, type Listening, type StatusEvent } from "./events.js";
export { type Following, failure, follow } from "./follow.js";
export {
  type ETLEvents,
  ETLProvider,
  type ETLRefresh,
  type ETLStatus,
  useETLEvents,
  useETLRefresh,
  useETLStatus,
} from "./hooks.js";
export type { RefreshRequest, Transport } from "./transport.js";
export type * from "./types.js";
