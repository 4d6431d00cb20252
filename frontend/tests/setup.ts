import { cleanup } from "@testing-library/react";
import { afterEach } from "vitest";

// A component that stays mounted goes on asking.
afterEach(cleanup);
