import { act, render, screen } from "@testing-library/react";
import { afterEach, beforeEach, expect, test, vi } from "vitest";
import { Missing, OneByOne, useModule } from "../page/src/later";
import { LOAD_AGAIN, MISSING, sayMissing } from "../page/src/missing";

beforeEach(() => void vi.useFakeTimers());
afterEach(() => void vi.useRealTimers());

const after = (container: HTMLElement) => {
  act(() => void vi.advanceTimersToNextTimer());
  return container.textContent;
};

test("parts are shown, and renewed, in a task each", () => {
  const parts = (word: string) => ["a", "b"].map((name) => <p key={name}>{name + word}</p>);
  const { container, rerender } = render(<OneByOne>{parts("1")}</OneByOne>);
  const told = [container.textContent];
  for (let place = 0; place < 2; place += 1) told.push(after(container));
  rerender(<OneByOne>{parts("2")}</OneByOne>);
  for (let place = 0; place < 2; place += 1) told.push(after(container));
  expect(told).toEqual(["", "a1", "a1b1", "a2b1", "a2b2"]);
  rerender(<OneByOne>{parts("2").slice(0, 1)}</OneByOne>);
  expect(container.textContent).toBe("a2");
});

test("a module that does not come is told as missing, with a way to load the page again", async () => {
  const gone = () => Promise.reject(new TypeError("404"));
  function Part() {
    return useModule(gone) === "missing" ? <Missing /> : null;
  }
  render(<Part />);
  await act(async () => undefined);
  expect(screen.getByRole("alert").textContent).toBe(MISSING + LOAD_AGAIN);
  const root = document.createElement("div");
  sayMissing(root);
  expect(root.querySelector("[role=alert]")?.textContent).toBe(MISSING);
  expect(root.querySelector("button")?.textContent).toBe(LOAD_AGAIN);
});
