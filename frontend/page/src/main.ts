/** The first code of the page. It asks for the state of the tables at once; the code that shows it comes at the same time. */
import { askFirst } from "./first";
import { HERE, KEEPING, takeToken } from "./here";
import { sayMissing } from "./missing";

const root = document.getElementById("root") as HTMLElement;
const token = takeToken() ?? KEEPING.find();
const request = askFirst(
  new URL("api/v1/etl/status", HERE).href,
  token === null ? {} : { Authorization: `Bearer ${token}` },
);
import("./App").then(
  // To read that code and to run it are two tasks, so that a press in between is answered.
  ({ start }) => setTimeout(() => start(root, token, request)),
  () => sayMissing(root),
);
