import { createRoot } from "react-dom/client";
import { App } from "./App";

createRoot(document.getElementById("root") as HTMLElement).render(<App baseUrl="http://127.0.0.1:8000" />);
