const { check } = require("./check.cjs");

check(require("pulso-etl"), require("pulso-etl/graphql"), require("@tanstack/react-query"));
