import { Icon } from "./Icon";
import type { Label } from "./words";

/** A state as a mark, a colour and a word. */
export function Badge({ label, turning = false }: { label: Label; turning?: boolean }) {
  return (
    <span className={`badge badge--${label.tone}`}>
      <Icon name={label.icon} turning={turning} />
      {label.text}
    </span>
  );
}
