import { useQuery } from "@tanstack/react-query";
import { useId, useState } from "react";
import { type Comparison, type ETLClient, type FigureStatus, figuresQueryOptions, type Status } from "../../src";
import { Download } from "./Download";
import { amount, atHour, describe, difference, marksOf, nameOf, reachOf, trendOf } from "./figures";
import { day, dayName } from "./format";
import type { Outlook } from "./state";

const [STEP, BAR, HEIGHT, ROOM] = [10, 7, 48, 4];

interface Props {
  client: ETLClient;
  status: Status;
  outlook: Outlook;
}

/** The numbers themselves: each key figure beside earlier days, its trend, and the rows for download. */
export function Figures({ client, status, outlook }: Props) {
  const { data, isError } = useQuery(figuresQueryOptions(client));
  const figures = data?.figures ?? [];
  const { now } = outlook;
  return (
    <section aria-labelledby="cifras">
      <h2 id="cifras">Cifras</h2>
      {isError && <p role="status">No se pudieron leer las cifras. La página las vuelve a pedir sola.</p>}
      {figures.length > 0 && (
        <>
          <div className="figures">
            {figures.map((figure) => (
              <Card key={`${figure.table} ${figure.figure}`} figure={figure} now={now} />
            ))}
          </div>
          <Days figures={figures} />
        </>
      )}
      <Download client={client} tables={status.tables} now={now} />
    </section>
  );
}

function Card({ figure, now }: { figure: FigureStatus; now: number }) {
  const id = useId();
  const { today: newest, unit, hour } = figure;
  // That the day goes on is told beside its hour.
  const marks = newest ? marksOf({ marks: newest.marks?.filter((mark) => mark !== "goes_on") }) : "";
  return (
    <section className="panel figure" aria-labelledby={id}>
      <h3 id={id}>{figure.title}</h3>
      <p className="figure__value">{amount(newest?.value, unit, true)}</p>
      <p className="muted">
        {reachOf(figure, now)}
        {marks && <span className="figure__marks">; {marks}</span>}
      </p>
      {newest && <Trend figure={figure} />}
      <dl>
        {hour != null && newest && (
          <div>
            <dt>
              {dayName(newest.day, now)} {atHour(hour)}
            </dt>
            <dd>{amount(figure.value_at_hour, unit, true)}</dd>
          </div>
        )}
        <Beside other={figure.yesterday} figure={figure} now={now} />
        <Beside other={figure.week_before} figure={figure} now={now} isWeek />
      </dl>
    </section>
  );
}

interface BesideProps {
  other: Comparison | null | undefined;
  figure: FigureStatus;
  now: number;
  isWeek?: boolean;
}

function Beside({ other, figure, now, isWeek = false }: BesideProps) {
  if (!other) return null;
  const [told, marks] = [difference(other, figure.unit), marksOf(other)];
  return (
    <div>
      <dt>
        {nameOf(other, figure, now, isWeek)}
        {marks && <span className="figure__marks">; {marks}</span>}
      </dt>
      <dd>
        {amount(other.value, figure.unit, true)} {told && <span className="figure__more">{told}</span>}
      </dd>
    </div>
  );
}

/** Thirty days as bars. A finger or the arrow keys pass from one day to another, and the day is told below. */
function Trend({ figure }: { figure: FigureStatus }) {
  const id = useId();
  const { days = [], title, unit } = figure;
  const [chosen, setChosen] = useState<number | null>(null);
  const place = Math.min(chosen ?? days.length - 1, days.length - 1);
  const values = days.map(({ value }) => Number(value ?? 0));
  const [low, high] = [Math.min(0, ...values), Math.max(0, ...values)];
  const scale = high > low ? (HEIGHT - ROOM) / (high - low) : 0;
  const zero = HEIGHT - ROOM / 2 + low * scale;
  const told = days[place];
  return (
    <div className="trend">
      <div className="trend__chart">
        <svg
          viewBox={`0 0 ${days.length * STEP} ${HEIGHT}`}
          preserveAspectRatio="none"
          role="img"
          aria-labelledby={`${id}-title ${id}-desc`}
        >
          <title id={`${id}-title`}>Tendencia de {title}</title>
          <desc id={`${id}-desc`}>{trendOf(figure)}</desc>
          {days.map(({ day: iso, value, marks }, at) => {
            if (value == null) return null;
            const size = Math.max(1.5, Math.abs(Number(value)) * scale);
            return (
              <rect
                key={iso}
                className={`trend__bar ${marks?.length ? "trend__bar--open" : ""} ${at === chosen ? "trend__bar--chosen" : ""}`}
                x={at * STEP + (STEP - BAR) / 2}
                y={Number(value) < 0 ? zero : zero - size}
                width={BAR}
                height={size}
              />
            );
          })}
        </svg>
        <input
          type="range"
          min={0}
          max={days.length - 1}
          value={place}
          aria-label={`Días de ${title}`}
          aria-valuetext={told && describe(told, unit)}
          onChange={(event) => setChosen(Number(event.target.value))}
          onPointerDown={(event) => setChosen(Number(event.currentTarget.value))}
        />
      </div>
      <p className="trend__said" aria-hidden="true">
        {told && (chosen === null ? "30 días; toque uno" : describe(told, unit))}
      </p>
    </div>
  );
}

/** The trends as a table. */
function Days({ figures }: { figures: FigureStatus[] }) {
  const dates = [...new Set(figures.flatMap(({ days = [] }) => days.map((one) => one.day)))].sort().reverse();
  const values = figures.map(({ days = [] }) => new Map(days.map((one) => [one.day, one])));
  return (
    <details className="days">
      <summary>Los 30 días en una tabla</summary>
      {/* biome-ignore lint/a11y/noNoninteractiveTabindex: it scrolls, and must do so by keyboard */}
      <section className="panel scroll scroll--low" aria-label="Cifras de cada día" tabIndex={0}>
        <table className="list">
          <caption className="hidden">Cifras de cada día, el más reciente primero</caption>
          <thead>
            <tr>
              <th scope="col">Día</th>
              {figures.map(({ table, figure, title }) => (
                <th key={`${table} ${figure}`} scope="col">
                  {title}
                </th>
              ))}
            </tr>
          </thead>
          <tbody>
            {dates.map((iso) => (
              <tr key={iso}>
                <th scope="row">{day(iso)}</th>
                {figures.map(({ table, figure, unit }, at) => {
                  const one = values[at]?.get(iso);
                  const marks = one ? marksOf(one) : "";
                  return (
                    <td key={`${table} ${figure}`}>
                      {amount(one?.value, unit)} {marks && <span className="muted">({marks})</span>}
                    </td>
                  );
                })}
              </tr>
            ))}
          </tbody>
        </table>
      </section>
    </details>
  );
}
