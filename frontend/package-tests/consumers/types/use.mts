import { createClient, type ETLClient } from "pulso-etl";
import { createGraphQLTransport } from "pulso-etl/graphql";

export const client: ETLClient = createClient();
export const transport = createGraphQLTransport();
