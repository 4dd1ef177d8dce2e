"use strict";
/* Where the marks of an axis stand and what they say: round values of its kind, each label exact and unlike the others. */

/* The least of 1, 2 and 5 times a power of ten that is `rough` or more: {times, power}. */
V.roundStep = (rough) => {
  let power = Math.floor(Math.log10(rough) + 1e-9);
  const times = [1, 2, 5, 10].find((one) => one * 10 ** power >= rough * (1 - 1e-9)) || 10;
  if (times === 10) power += 1;
  return {times: times === 10 ? 1 : times, power};
};

/* A number with as many decimals as a step of 10 ** power needs. */
V.exact = (value, power) => {
  const size = Math.abs(value);
  if (size === 0) return "0";
  if (size >= 1e6 || size < 0.001) {
    const digits = Math.min(Math.max(Math.floor(Math.log10(size) + 1e-9) - power, 0), 15);
    const [mantissa, exponent] = value.toExponential(digits).split("e");
    return `${mantissa.includes(".") ? mantissa.replace(/\.?0+$/, "") : mantissa}e${Number(exponent)}`;
  }
  return value.toLocaleString("en", {maximumFractionDigits: Math.min(Math.max(-power, 0), 20)});
};

/* A length of time in all its units: 1 min 30 s. */
V.exactSpan = (seconds, power) => {
  if (seconds < 0) return `-${V.exactSpan(-seconds, power)}`;
  if (seconds < 60) return `${V.exact(seconds, power)} s`;
  const whole = Math.floor(seconds), parts = [[Math.floor(whole / 86400), "d"], [Math.floor(whole / 3600) % 24, "h"], [Math.floor(whole / 60) % 60, "min"]];
  const rest = seconds - Math.floor(seconds / 60) * 60;
  return [...parts.filter(([amount]) => amount).map(([amount, unit]) => `${amount.toLocaleString("en")} ${unit}`), ...(rest > 1e-9 ? [`${V.exact(rest, power)} s`] : [])].join(" ");
};

/* Which multiples of `step` lie between, at most 60. */
V.multiples = (least, most, step) => {
  const slack = Math.min(1e-9, 1e-6 * (most / step - least / step)), first = Math.ceil(least / step - slack), last = Math.floor(most / step + slack);
  return Number.isSafeInteger(first) && Number.isSafeInteger(last) ? Array.from({length: Math.min(Math.max(last - first + 1, 0), 60)}, (_, at) => first + at) : [];
};

/* Each kind: (least, most, rough distance) -> [[value, label]]. */
V.TICKS = {
  number: (least, most, rough) => {
    const {times, power} = V.roundStep(rough);
    return V.multiples(least, most, times * 10 ** power).map((at) => { const value = Number(`${at * times}e${power}`); return [value, V.exact(value, power)]; });
  },
  count: (least, most, rough) => V.TICKS.number(least, most, Math.max(rough, 1)),
  percent: (least, most, rough) => {
    const {times, power} = V.roundStep(100 * rough);
    return V.multiples(100 * least, 100 * most, times * 10 ** power).map((at) => { const value = Number(`${at * times}e${power}`); return [Number(`${at * times}e${power - 2}`), `${V.exact(value, power)} %`]; });
  },
  bytes: (least, most, rough) => {
    const units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"], size = Math.max(Math.abs(least), Math.abs(most));
    const unit = Math.min(Math.max(Math.floor(Math.log2(size) / 10 + 1e-9), 0), units.length - 1), one = 1024 ** unit;
    if (rough / one >= 0.75) {
      const step = 2 ** Math.max(Math.ceil(Math.log2(rough / one) - 1e-9), 0);
      return V.multiples(least, most, step * one).map((at) => [at * step * one, at ? `${V.exact(at * step, 0)} ${units[unit]}` : "0"]);
    }
    const {times, power} = V.roundStep(rough / one);
    return V.multiples(least / one, most / one, times * 10 ** power).map((at) => { const value = Number(`${at * times}e${power}`); return [value * one, value ? `${V.exact(value, power)} ${units[unit]}` : "0"]; });
  },
  span: (least, most, rough) => {
    if (rough < 0.75) {
      const {times, power} = V.roundStep(rough), milli = Math.max(Math.abs(least), Math.abs(most)) < 1;
      return V.multiples(least, most, times * 10 ** power).map((at) => {
        const value = Number(`${at * times}e${power}`);
        return [value, value === 0 ? "0 s" : milli ? `${V.exact(Number(`${at * times}e${power + 3}`), power + 3)} ms` : V.exactSpan(value, power)];
      });
    }
    const known = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200, 86400].find((one) => one >= rough * (1 - 1e-9));
    if (known) return V.multiples(least, most, known).map((at) => [at * known, V.exactSpan(at * known, 0)]);
    const {times, power} = V.roundStep(rough / 86400);
    return V.multiples(least / 86400, most / 86400, times * 10 ** power).map((at) => { const days = Number(`${at * times}e${power}`); return [86400 * days, days ? `${V.exact(days, power)} d` : "0 s"]; });
  },
  clock: (least, most, rough) => V.clockTicks(least, most, rough),
};

/* Seconds since 1970, at round places of the local day; the day is said wherever the axis reaches over more than one. */
V.clockTicks = (least, most, rough) => {
  const date = (value) => new Date(1000 * value), day = (at) => `${at.getFullYear()}-${V.two(at.getMonth() + 1)}-${V.two(at.getDate())}`;
  if (![least, most].every((value) => V.is(date(value).getTime()))) return V.TICKS.number(least, most, rough);
  let values = [], power = 0;
  if (rough > 43200) {
    const from = date(least), days = Math.max(Math.ceil(rough / 86400 - 1e-9), 1);
    const step = [1, 2, 7, 14].find((one) => one >= days), months = step ? 0 : [1, 2, 3, 6, 12].find((one) => 31 * one >= days) || 12 * V.roundStep(days / 365).times * 10 ** V.roundStep(days / 365).power;
    const origin = Math.floor((Date.UTC(from.getFullYear(), from.getMonth(), from.getDate()) / 86400000) / (step || 1)) * (step || 1);
    for (let at = 0; at < 60; at += 1) {
      const whole = months ? Math.floor((12 * from.getFullYear() + from.getMonth()) / months) * months + at * months : 0;
      const place = months ? new Date(Math.floor(whole / 12), whole % 12, 1) : new Date(1970, 0, 1 + origin + at * step);
      if (place / 1000 > most) break;
      if (place / 1000 >= least) values.push(place / 1000);
    }
  } else {
    let step = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200].find((one) => one >= rough * (1 - 1e-9));
    if (rough < 0.75) { const found = V.roundStep(Math.max(rough, 1e-6)); power = found.power; step = found.times * 10 ** found.power; }
    const midnight = date(least);
    midnight.setHours(0, 0, 0, 0);
    const base = midnight / 1000, places = V.multiples(least - base, most - base, step);
    values = places.map((at) => Number((base + at * step).toFixed(Math.max(-power, 0))));
  }
  const days = new Set(values.map((value) => day(date(value)))), years = new Set(values.map((value) => date(value).getFullYear()));
  const seconds = values.some((value) => Math.abs(value % 60) > 1e-9);
  return values.map((value) => {
    const at = date(Math.floor(value + 1e-7)), fraction = value - Math.floor(value + 1e-7);
    const part = power < 0 ? (fraction > 0 ? fraction : 0).toFixed(-power).slice(1) : "";
    if (rough > 43200 || (days.size > 1 && at.getHours() === 0 && at.getMinutes() === 0 && at.getSeconds() === 0 && !(fraction > 1e-7))) return [value, day(at)];
    const clock = `${V.two(at.getHours())}:${V.two(at.getMinutes())}${seconds || power < 0 ? `:${V.two(at.getSeconds())}${part}` : ""}`;
    return [value, days.size > 1 ? `${years.size > 1 ? day(at) : day(at).slice(5)} ${clock}` : clock];
  });
};

/* About `count` marks between two values. */
V.ticks = (kind, least, most, count, log) => {
  if (!V.is(least) || !V.is(most) || !(most > least)) return [];
  const rough = most / Math.max(count, 1) - least / Math.max(count, 1);
  if (log && least > 0) {
    const wide = Math.log10(most / least), found = [];
    const every = Math.max(Math.ceil(wide / Math.max(count, 1)), 1), times = wide > 2.5 || 3 * wide > count ? [1] : [1, 2, 5];
    for (let power = Math.floor(Math.log10(least) / every) * every; power <= Math.log10(most) + 1e-9; power += every)
      for (const one of times) { const value = Number(`${one}e${power}`); if (value >= least * (1 - 1e-9) && value <= most * (1 + 1e-9)) found.push([value, kind === "percent" ? `${V.exact(Number(`${one}e${power + 2}`), power + 2)} %` : kind === "short" ? V.short(value) : V.exact(value, power)]); }
    if (found.length > 1) return found;
  }
  let found = [];
  for (let finer = 1; found.length < 2 && finer <= 8; finer *= 2) found = V.TICKS[kind](least, most, rough / finer);
  return found;
};
V.TICKS.short = (least, most, rough) => V.TICKS.number(least, most, rough);
