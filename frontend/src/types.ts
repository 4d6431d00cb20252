/** The shapes of the API, as its OpenAPI document gives them. */
export type {
  Cause,
  Cleanup,
  Extraction,
  ExtractionMode,
  Failure,
  Fault,
  Health,
  PartitionStatus,
  Refresh,
  RunUnderWay,
  Status,
  TableConfig,
  TableDetail,
  TableRun,
  TableStatus,
  ValidationFaults,
} from "./schema.js";
