import * as query from "@tanstack/react-query";
import * as pulso from "pulso-etl";
import * as graphql from "pulso-etl/graphql";
import { check } from "./check.cjs";

await check(pulso, graphql, query);
