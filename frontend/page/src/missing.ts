/** What the page says if a part of its own code does not come: a newer version replaces the files of an older one. */
export const MISSING = "No se pudo cargar una parte de esta página. Quizá hay una versión nueva de Pulso.";
export const LOAD_AGAIN = "Volver a cargar la página";

/** Says so in place of the page. It needs nothing of the part that is missing. */
export function sayMissing(root: HTMLElement): void {
  const main = Object.assign(document.createElement("main"), { className: "alone" });
  const title = Object.assign(document.createElement("h1"), { textContent: "Pulso" });
  const said = Object.assign(document.createElement("p"), { textContent: MISSING });
  said.setAttribute("role", "alert");
  const again = Object.assign(document.createElement("button"), {
    type: "button",
    className: "button button--main",
    textContent: LOAD_AGAIN,
    onclick: () => location.reload(),
  });
  main.append(title, said, again);
  root.replaceChildren(main);
}
