const PATHS = {
  check: "M5 12.5l4.5 4.5L19 7.5",
  cross: "M6 6l12 12M18 6L6 18",
  alert: "M12 4L2.8 19.5h18.4L12 4zM12 10v4.2M12 16.8v.2",
  clock: "M12 3.5a8.5 8.5 0 100 17 8.5 8.5 0 000-17zM12 7.5V12l3 2",
  empty: "M12 3.5a8.5 8.5 0 100 17 8.5 8.5 0 000-17zM8.5 12h7",
  refresh: "M19.5 12a7.5 7.5 0 11-2.2-5.3M19.5 3.5v4h-4",
  wave: "M2.5 12.5h4.6l2.3-6 3.8 11 3-7.2 1.7 2.2h3.6",
} as const;

export type IconName = keyof typeof PATHS;

/** An icon. The words beside it say the same. */
export function Icon({ name, turning = false }: { name: IconName; turning?: boolean }) {
  return (
    <svg className={turning ? "icon icon--turning" : "icon"} viewBox="0 0 24 24" aria-hidden="true" focusable="false">
      <path d={PATHS[name]} />
    </svg>
  );
}
