import { renderToString } from "react-dom/server";
import { App } from "./App";

console.log(renderToString(<App baseUrl="http://127.0.0.1:9" />));
