/* Explorable figures. Each .explorable holds JSON that names a figure below, its data, its controls
   and its twin, the static figure whose place it takes. Nothing moves by itself, nothing is fetched;
   without this script, and on paper, the twin is seen. */
"use strict";

window.explore = (() => {
  // --- Formulas: numbers in, numbers out; tests compare them with Python -------------------------

  const formulas = {
    /* Largest distance of the linear and of the quadratic model from the loss up to each radius.
       bend[i] is L(w + t u) - L(w) - t g'u at t = -radii[m-1] ... 0 ... radii[m-1]. */
    misses(radii, bend, curvature) {
      const zero = radii.length;
      let linear = 0, quadratic = 0;
      return radii.map((r, i) => {
        for (const side of [zero - 1 - i, zero + 1 + i]) {
          linear = Math.max(linear, Math.abs(bend[side]));
          quadratic = Math.max(quadratic, Math.abs(bend[side] - curvature * r * r / 2));
        }
        return {linear, quadratic, term: Math.abs(curvature) * r * r / 2};
      });
    },

    /* Maximiser of g'd + d'Hd/2 over |d| <= radius, H diagonal: (mu - H) d = g, the secular equation
       |d(mu)| = radius, solved by bisection in mu - lambda_max (More and Sorensen 1983). */
    largestRise(h, g, radius) {
      const top = Math.max(...h), size = Math.hypot(...g);
      const isTop = h.map((value) => value === top);
      const solve = (shift) => g.map((v, i) => (v === 0 ? 0 : v / (shift + (top - h[i]))));
      const value = (d) => d.reduce((sum, v, i) => sum + g[i] * v + h[i] * v * v / 2, 0);
      if (top < 0 && Math.hypot(...solve(-top)) <= radius) {
        const d = solve(-top);
        return {d, value: value(d), multiplier: 0, hard: false};
      }
      const above = Math.hypot(...g.filter((v, i) => isTop[i]));
      const rest = solve(0).map((v, i) => (isTop[i] ? 0 : v));
      if (above <= 1e-12 * size && top >= 0 && Math.hypot(...rest) <= radius) {
        const d = rest;  // the hard case: what is missing goes along a top eigenvector
        d[isTop.indexOf(true)] = Math.sqrt(Math.max(0, radius ** 2 - Math.hypot(...rest) ** 2));
        return {d, value: value(d), multiplier: top, hard: true};
      }
      let low = Math.max(above / radius, -top), high = Math.max(size / radius, low);
      for (let i = 0; i < 200; i++) {
        const middle = (low + high) / 2;
        if (Math.hypot(...solve(middle)) > radius) low = middle;
        else high = middle;
      }
      const d = solve(high);
      return {d, value: value(d), multiplier: top + high, hard: false};
    },

    /* Stationary covariance of SGD with heavy ball, H diagonal, C the noise of a batch; null where
       there is none, because a step is longer than 2 (1 + momentum) / h. */
    stationary(h, C, rate, momentum) {
      if (h.some((value) => !(value > 0 && value < 2 * (1 + momentum) / rate))) return null;
      const q = 1 - momentum ** 2;
      return h.map((a, i) => h.map((b, j) => rate * q * C[i][j] / (q * (1 - momentum) * (a + b)
        - rate * (a - momentum * b) * (b - momentum * a))));
    },

    /* Half axes and angle (radians, of the long one) of the ellipse of one standard deviation. */
    ellipse([[a, b], [, c]]) {
      const middle = (a + c) / 2, spread = Math.hypot((a - c) / 2, b);
      return {
        long: Math.sqrt(middle + spread),
        short: Math.sqrt(Math.max(0, middle - spread)),
        angle: Math.atan2(2 * b, a - c) / 2,
      };
    },

    /* Unit vectors of power iteration on diag(1, second) from an angle (radians), each with its
       Rayleigh quotient and residual. */
    power(second, angle, steps) {
      return Array.from({length: steps + 1}, (_, k) => {
        const [a, b] = [Math.cos(angle), Math.sin(angle) * second ** k], size = Math.hypot(a, b);
        const [x, y] = [a / size, b / size];
        return {x, y, quotient: x * x + second * y * y, residual: Math.abs((1 - second) * x * y)};
      });
    },

    /* The value below which a share of the given ones lies, interpolated. */
    quantile(values, share) {
      const sorted = [...values].sort((a, b) => a - b), place = share * (sorted.length - 1);
      const [low, rest] = [Math.floor(place), place % 1];
      return rest ? sorted[low] + rest * (sorted[low + 1] - sorted[low]) : sorted[low];
    },

    /* Heights of a landscape, two letters of base 36 each. */
    heights: (text) => text.match(/../g).map((pair) => parseInt(pair, 36)),

    /* A point seen from the direction (turn, tilt), in degrees: right, up, away. */
    seen([x, y, z], turn, tilt) {
      const [a, b] = [turn, tilt].map((v) => v * Math.PI / 180);
      const away = x * Math.sin(a) + y * Math.cos(a);
      return [x * Math.cos(a) - y * Math.sin(a), away * Math.sin(b) + z * Math.cos(b), away];
    },
  };

  // --- Words and elements ------------------------------------------------------------------------

  const maker = (space) => (tag, attributes = {}, ...children) => {
    const node = document.createElementNS(space, tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    node.append(...children);
    return node;
  };
  const html = maker("http://www.w3.org/1999/xhtml");
  const svg = maker("http://www.w3.org/2000/svg");

  /* A number in three digits. */
  function say(x) {
    const size = Math.abs(x);
    const plain = size === 0 || (size >= 1e-4 && size < 1e6);
    return (plain ? String(Number(x.toPrecision(3))) : x.toExponential(1)).replace(/^-/, "\u2212");
  }
  const percent = (share) => `${say(100 * share)}\u00a0%`;

  // --- Drawing -----------------------------------------------------------------------------------

  const SHAPES = {
    circle: "M-5.5 0a5.5 5.5 0 1 0 11 0a5.5 5.5 0 1 0-11 0z",
    square: "M-5-5h10v10h-10z",
    triangle: "M0-7l6.5 11h-13z",
  };

  function ticks({from, to, log}, most) {
    if (log) {
      const [a, b] = [Math.log10(from), Math.log10(to)].map((v) => Number(v.toFixed(9)));
      const inside = (v) => v >= from * 0.999 && v <= to * 1.001;
      const decades = [];
      for (let k = Math.floor(a); k <= b; k++) decades.push(Number(`1e${k}`));
      if (b - a < 1.5) return decades.flatMap((v) => [v, 2 * v, 5 * v]).filter(inside);
      const every = Math.ceil((b - a) / most);
      return decades.filter(inside).filter((v) => Math.round(Math.log10(v)) % every === 0);
    }
    const raw = (to - from) / most, unit = 10 ** Math.floor(Math.log10(raw));
    const step = [1, 2, 5, 10].map((k) => k * unit).find((v) => v >= raw * 0.999);
    const found = [];
    for (let k = Math.ceil(from / step); k * step <= to; k++) found.push(k * step);
    return found;
  }

  /* Axes in a box of the canvas; x and y are {from, to, log, label}. What is drawn stays inside. */
  function panel(canvas, {left, top, width, height}, x, y) {
    const place = ({from, to, log}, size) => {
      const f = log ? Math.log10 : (v) => v;
      return (v) => (f(v) - f(from)) / (f(to) - f(from)) * size;
    };
    const X = place(x, width), up = place(y, height), Y = (v) => height - up(v);
    const inner = svg("svg", {x: left, y: top, width, height});
    const add = (d, kind, more = {}) => inner.append(svg("path", {d, class: kind, ...more}));
    const text = (words, at, down, anchor, kind = "") =>
      canvas.append(svg("text", {x: at, y: down, "text-anchor": anchor, class: kind}, words));
    for (const v of ticks(x, Math.max(3, width / 75))) {
      add(`M${X(v)} 0V${height}`, "grid");
      text(say(v), left + X(v), top + height + 17, "middle");
    }
    for (const v of ticks(y, Math.max(3, height / 45))) {
      add(`M0 ${Y(v)}H${width}`, "grid");
      text(say(v), left - 6, top + Y(v) + 4, "end");
    }
    text(y.label, 2, top - 13, "start", "strong");
    text(x.label, left + width, top + height + 36, "end", "strong");
    canvas.append(inner, svg("rect", {x: left, y: top, width, height, class: "frame"}));
    const path = (xs, ys) => xs.map((v, i) => [X(v), Y(ys[i])])
      .map(([a, b], i, all) => (Number.isFinite(a + b)
        ? `${i && Number.isFinite(all[i - 1][0] + all[i - 1][1]) ? "L" : "M"}${a.toFixed(1)} ${b.toFixed(1)}`
        : "")).join("");
    return {
      X, Y, add,
      line: (xs, ys, kind) => add(path(xs, ys), kind),
      mark: (a, b, shape, kind) =>
        add(SHAPES[shape], `mark ${kind}`, {transform: `translate(${X(a)} ${Y(b)})`}),
      band: (a, b) => add(`M${X(a)} 0H${X(b)}V${height}H${X(a)}z`, "band"),
      levels: (f, values) => contours(f, x, y, values)
        .forEach((pieces, i) => add(pieces.map(([p, q]) => `M${X(p[0]).toFixed(1)} ${Y(p[1]).toFixed(1)}`
          + `L${X(q[0]).toFixed(1)} ${Y(q[1]).toFixed(1)}`).join(""), values[i] ? "level" : "level zero")),
    };
  }

  /* Level lines of f by marching squares: for each level the pieces [[x, y], [x, y]]. */
  function contours(f, x, y, values, cells = 44) {
    const at = ({from, to}, k) => from + (to - from) * k / cells;
    const known = Array.from({length: cells + 1}, (_, i) =>
      Array.from({length: cells + 1}, (_, j) => f(at(x, i), at(y, j))));
    const corners = [[0, 0], [1, 0], [1, 1], [0, 1]];
    return values.map((level) => {
      const pieces = [];
      for (let i = 0; i < cells; i++) for (let j = 0; j < cells; j++) {
        const cuts = [];
        corners.forEach(([p, q], k) => {
          const [r, s] = corners[(k + 1) % 4];
          const a = known[i + p][j + q] - level, b = known[i + r][j + s] - level;
          if ((a < 0) === (b < 0)) return;
          const share = a / (a - b);
          cuts.push([at(x, i + p + share * (r - p)), at(y, j + q + share * (s - q))]);
        });
        for (let k = 0; k + 1 < cuts.length; k += 2) pieces.push([cuts[k], cuts[k + 1]]);
      }
      return pieces;
    });
  }

  /* Points of an ellipse. */
  function around(count, point) {
    const turns = Array.from({length: count + 1}, (_, k) => 2 * Math.PI * k / count).map(point);
    return [turns.map((p) => p[0]), turns.map((p) => p[1])];
  }

  /* A square panel around the origin: the plane of two eigenvectors. */
  function plane(canvas, width, reach, labels) {
    const side = Math.min(width - 66, 440), left = Math.max(56, (width - side) / 2);
    const axis = (label) => ({from: -reach, to: reach, label});
    return {
      axes: panel(canvas, {left, top: 28, width: side, height: side}, axis(labels[0]), axis(labels[1])),
      height: side + 72,
    };
  }

  // --- Figures: (canvas, width, data, state) to {height, keys, sentence, rows} -------------------

  const figures = {
    taylor(canvas, width, {radii, lines}, {radius: wanted, network, direction}) {
      const {slope, curvature, bend} = lines[network][direction];
      const t = [...radii.map((r) => -r).reverse(), 0, ...radii];
      const loss = t.map((s, i) => slope * s + bend[i]);
      const quadratic = t.map((s) => slope * s + curvature * s * s / 2);
      const far = radii[radii.length - 1];
      const near = Math.max(0, radii.filter((r) => r <= wanted * 1.001).length - 1);
      const radius = radii[near];  // the largest stored one inside
      const found = formulas.misses(radii, bend, curvature), here = found[near];
      const box = {left: 56, width: width - 66};
      const [low, high] = [Math.min(0, ...loss), Math.max(0, ...loss)], room = 0.12 * (high - low);
      const upper = panel(canvas, {...box, top: 28, height: 230},
        {from: -far, to: far, label: "step t"},
        {from: low - room, to: high + room, label: "L(w + t u) \u2212 L(w)"});
      upper.band(-radius, radius);
      upper.line([-far, far], [-slope * far, slope * far], "line c");
      upper.line(t, quadratic, "line b");
      upper.line(t, loss, "line a");
      const lower = panel(canvas, {...box, top: 348, height: 150},
        {from: radii[0], to: far, log: true, label: "radius"},
        {from: 1e-3, to: 10, log: true, label: "largest miss / quadratic term"});
      lower.add(`M0 ${lower.Y(1)}H${box.width}`, "level zero");
      const share = (one) => one.map((m) => m.quadratic / m.term);
      for (const other of Object.keys(lines)) {
        const {bend: b, curvature: c} = lines[other][direction];
        lower.line(radii, share(formulas.misses(radii, b, c)), `line ${other === network ? "b" : "d"}`);
      }
      const ratio = here.quadratic / here.term;
      if (here.term) lower.mark(radius, Math.min(10, Math.max(1e-3, ratio)), "square", "b");
      const others = Object.keys(lines).filter((name) => name !== network);
      return {
        height: 540,
        keys: [["line a", "loss"], ["line b", "quadratic model"], ["line c", "linear model"],
          ...(others.length ? [["line d", `below: quadratic model, ${others.join(", ")}`]] : [])],
        sentence: `Up to radius ${say(radius)} the quadratic model misses the loss of the ${network} `
          + `network by at most ${say(here.quadratic)}, ${here.term ? percent(ratio) + " of its quadratic term"
            : "and there is no curvature"}. `
          + `The linear model misses it by up to ${say(here.linear)}.`,
        rows: [["Slope g'u", say(slope)], ["Curvature u'Hu", say(curvature)],
          ["Radius r", say(radius)], ["Quadratic term, r\u00b2|u'Hu|/2", say(here.term)],
          ["Largest miss of the quadratic model", say(here.quadratic)],
          ["Largest miss of the linear model", say(here.linear)]],
      };
    },

    "trust-region"(canvas, width, data, {radius, gradient, angle, curvature}) {
      const turn = angle * Math.PI / 180, h = [1, curvature];
      const clean = (v) => (Math.abs(v) < 1e-12 ? 0 : v);
      const g = [clean(gradient * Math.cos(turn)), clean(gradient * Math.sin(turn))];
      const {d, value, multiplier, hard} = formulas.largestRise(h, g, radius);
      const guess = radius ** 2 / 2, ratio = value / guess;
      const rise = (x, y) => g[0] * x + g[1] * y + (h[0] * x * x + h[1] * y * y) / 2;
      const reach = 2.2;
      const {axes, height} = plane(canvas, width, reach,
        ["along the top eigenvector v\u2081", "along v\u2082"]);
      axes.levels(rise, [-8, -6, -4, -2, -1, -0.5, 0, 0.5, 1, 1.5, 2, 3, 4]);
      axes.line(...around(90, (s) => [radius * Math.cos(s), radius * Math.sin(s)]), "line a");
      if (gradient > 0) {
        const [x, y] = [axes.X(g[0]), axes.Y(g[1])];
        const [dx, dy] = [Math.cos(turn) * 9, -Math.sin(turn) * 9];
        axes.add(`M${axes.X(0)} ${axes.Y(0)}L${x} ${y}m${-dx - dy / 2} ${-dy + dx / 2}L${x} ${y}`
          + `l${-dx + dy / 2} ${-dy - dx / 2}`, "line d solid");
      }
      for (const side of [1, -1]) axes.mark(side * radius, 0, "square", "b");
      axes.mark(d[0], d[1], "circle", "full a");
      if (hard && d[0]) axes.mark(-d[0], d[1], "circle", "full a");
      return {
        height,
        keys: [["line a", "ball"], ["mark full a circle", "largest rise"],
          ["mark b square", "where eq. 4 looks"], ["line d solid", "gradient"]],
        sentence: `The model rises by at most ${say(value)} in the ball; eq. 4 says ${say(guess)}. `
          + (ratio < 1.005 ? "They agree." : `The exact value is ${say(ratio)} times as large.`)
          + (hard && d[0] ? " The gradient has no part along v\u2081: two points are equally high." : ""),
        rows: [["Largest rise", say(value)], ["Eq. 4, r\u00b2\u03bb\u2081/2", say(guess)],
          ["Ratio", say(ratio)], ["Linear term alone, r|g|", say(radius * gradient)],
          ["Where, along v\u2081 and v\u2082", `${say(d[0])}, ${say(d[1])}`],
          ["Multiplier \u03bc", say(multiplier)],
          ["2|g|/\u03bb\u2081, radius that eq. 4 must exceed by far", say(2 * gradient)]],
      };
    },

    "noise-ellipse"(canvas, width, {curvatures, noises}, {rate, batch, momentum, noise}) {
      const [sharp, flat] = curvatures;
      const share = rate * sharp / (2 * (1 + momentum));
      const C = noises[noise].map((row) => row.map((v) => v / batch));
      const S = formulas.stationary(curvatures, C, rate, momentum);
      const T = rate * (C[0][0] + C[1][1]) / 4 / (1 - momentum);  // eq. 6 with this trace
      const six = [[T / sharp, 0], [0, T / flat]];
      const ovals = [["b", six], ...(S ? [["a", S]] : [])]
        .map(([kind, M]) => [kind, formulas.ellipse(M)]);
      const widest = 2 * Math.max(...ovals.map(([, oval]) => oval.long));
      const reach = 10 ** (Math.ceil(4 * Math.log10(1.05 * widest)) / 4);  // 4 zooms a decade
      const {axes, height} = plane(canvas, width, reach,
        ["along the flat direction", "along the sharp direction"]);
      const most = (sharp + flat) * reach ** 2 / 2;
      for (const v of [0.1, 0.25, 0.4, 0.55, 0.7, 0.85]) {
        const [x, y] = curvatures.map((h) => v * Math.sqrt(2 * most / h)).reverse();
        axes.line(...around(120, (s) => [x * Math.cos(s), y * Math.sin(s)]), "level");
      }
      for (const [kind, {long, short, angle}] of ovals) {
        // The first coordinate is the sharp one and is drawn upwards.
        axes.line(...around(120, (s) => {
          const [p, q] = [2 * long * Math.cos(s), 2 * short * Math.sin(s)];
          return [p * Math.sin(angle) + q * Math.cos(angle), p * Math.cos(angle) - q * Math.sin(angle)];
        }), `line ${kind}`);
      }
      const deviations = (M) => M && [Math.sqrt(M[0][0]), Math.sqrt(M[1][1])];
      const [here, there] = [deviations(S), deviations(six)];
      const limit = `The learning rate uses ${percent(share)} of the stability limit.`;
      return {
        height,
        keys: [["line a", "SGD, two standard deviations"], ["line b", "eq. 6: T H\u207b\u00b9"]],
        sentence: S
          ? `Along the flat direction SGD scatters ${say(here[1] / here[0])} times as far as along the `
            + `sharp one; eq. 6 says ${say(there[1] / there[0])} times. ${limit}`
          : `Unstable: the learning rate is ${percent(share)} of the stability limit of the sharp `
            + "direction, so there is no stationary state to draw.",
        rows: [["Curvatures, sharp and flat", curvatures.map(say).join(", ")],
          ["Standard deviations of SGD", here ? here.map(say).join(", ") : "none"],
          ["The same by eq. 6", there.map(say).join(", ")],
          ["Temperature T", say(T)],
          ["Stability limit 2(1 + \u03bc)/\u03b7", say(2 * (1 + momentum) / rate)],
          ["Part of the limit in use", percent(share)]],
      };
    },

    "power-iteration"(canvas, width, data, {second, angle, step}) {
      const last = 30, path = formulas.power(second, angle * Math.PI / 180, last), here = path[step];
      const side = Math.min(width - 66, 300), reach = 1.25;
      const axis = (label) => ({from: -reach, to: reach, label});
      const upper = panel(canvas, {left: Math.max(56, (width - side) / 2), top: 28, width: side, height: side},
        axis("along v\u2081, eigenvalue 1"), axis("along v\u2082"));
      upper.line(...around(90, (s) => [Math.cos(s), Math.sin(s)]), "level");
      for (const one of path.slice(0, step)) upper.mark(one.x, one.y, "square", "d");
      upper.line([0, here.x], [0, here.y], "line a");
      upper.mark(here.x, here.y, "circle", "full a");
      const steps = path.map((_, k) => k), clip = (v) => Math.min(3, Math.max(1e-6, v));
      const miss = path.map((one) => clip(Math.abs(one.quotient - 1)));
      const residual = path.map((one) => clip(one.residual));
      const lower = panel(canvas, {left: 56, width: width - 66, top: side + 106, height: 150},
        {from: 0, to: last, label: "step"}, {from: 1e-6, to: 3, log: true, label: "error, residual"});
      lower.line(steps, miss, "line b");
      lower.line(steps, residual, "line c");
      lower.mark(step, miss[step], "square", "b");
      lower.mark(step, residual[step], "triangle", "c");
      const size = Math.abs(second);
      const fate = size < 1 ? "It turns to v\u2081, whose eigenvalue, 1, is the largest."
        : size > 1 ? `It turns to v\u2082: ${say(second)} is the largest in modulus, and the largest eigenvalue, 1, is missed.`
          : "It jumps to and fro for ever. The quotient stands still and is no eigenvalue; the residual tells.";
      return {
        height: side + 298,
        keys: [["mark full a circle", "the vector now"], ["mark d square", "before"],
          ["line b", "distance of the quotient from 1"], ["line c", "residual"]],
        sentence: `After ${step} steps the quotient is ${say(here.quotient)} and the residual ${say(here.residual)}. ${fate}`,
        rows: [["Eigenvalues", `1, ${say(second)}`], ["Step", say(step)],
          ["Rayleigh quotient", say(here.quotient)], ["Residual", say(here.residual)],
          ["Its distance from the largest eigenvalue", say(Math.abs(here.quotient - 1))],
          ["Ratio of the moduli", say(Math.min(size, 1 / size))]],
      };
    },

    "batch-bias"(canvas, width, {images, networks}, {size, network}) {
      const {full, sizes, values} = networks[network], here = sizes.indexOf(size);
      const whole = `all ${images.toLocaleString("en")} images`;
      const mean = values.map((found) => found.reduce((sum, v) => sum + v, 0) / found.length);
      const all = values.flat();
      const axes = panel(canvas, {left: 56, top: 28, width: width - 66, height: 300},
        {from: sizes[0] / 2, to: images * 1.5, log: true, label: "images in the batch"},
        {from: Math.min(...all, full) / 1.5, to: Math.max(...all) * 1.5, log: true, label: "\u03bb_max"});
      values.forEach((found, place) => axes.add(found.map((v, i) =>  // spread by the golden ratio
        `M${(axes.X(sizes[place]) + 16 * ((0.618 * i) % 1 - 0.5)).toFixed(1)} ${axes.Y(v).toFixed(1)}h.01`)
        .join(""), place === here ? "dots a" : "dots"));
      axes.add(`M0 ${axes.Y(full)}H${width - 66}`, "line b");
      axes.line([...sizes, images], [...mean, full], "line d");
      axes.mark(size, mean[here], "square", "b");
      const [low, high] = [0.25, 0.75].map((share) => formulas.quantile(values[here], share));
      const above = values[here].filter((v) => v > full).length;
      return {
        height: 372,
        keys: [["mark full a circle", "random batches of this size"], ["line d", "their mean, by size"],
          ["line b", whole]],
        sentence: `${network}, batches of ${size}: the mean is ${say(mean[here] / full)} times \u03bb_max on `
          + `${whole}. ${above} of ${values[here].length} batches lie above it, and half of them between `
          + `${say(low)} and ${say(high)}.`,
        rows: [[`\u03bb_max, ${whole}`, say(full)], ["Batches drawn", say(values[here].length)],
          ["Their mean", say(mean[here])], ["Mean / all images", say(mean[here] / full)],
          ["Smallest and largest", `${say(Math.min(...values[here]))}, ${say(Math.max(...values[here]))}`],
          ["Middle half", `${say(low)} to ${say(high)}`]],
      };
    },

    rescaling(canvas, width, {examples, networks}, {scale, network}) {
      const closest = (list, v) => list.reduce((best, one, i) =>
        (Math.abs(Math.log(one / v)) < Math.abs(Math.log(list[best] / v)) ? i : best), 0);
      const times = ({scale: s, ...one}, name) => one[name].map((v) => v / one[name][closest(s, 1)]);
      const {[network]: chosen} = networks;
      const scales = chosen.scale, here = closest(scales, scale);
      const all = Object.values(networks).flatMap((one) => times(one, "sharpness"));
      const axes = panel(canvas, {left: 56, top: 50, width: width - 66, height: 260},
        {from: scales[0], to: scales[scales.length - 1], log: true,
          label: "scale a of the hidden activations"},
        {from: Math.min(...all) / 2, to: Math.max(...all) * 2, log: true,
          label: "times its trained value"});
      axes.add(`M${axes.X(1)} 0V260`, "level zero");
      const sharpness = times(chosen, "sharpness"), relative = times(chosen, "relative");
      axes.line(scales, sharpness, "line a");
      axes.line(scales, relative, "line b");
      axes.mark(scales[here], sharpness[here], "circle", "full a");
      axes.mark(scales[here], relative[here], "square", "b");
      const changed = chosen.changed[here];
      const count = `${changed} of ${examples} predictions changed`;
      canvas.append(svg("text", {x: 2, y: 16, class: "strong"}, `a = ${say(scales[here])}: ${count}`));
      return {
        height: 354,
        keys: [["line a", "\u03bb_max of the Hessian"], ["line b", "\u03bb_max per relative change"]],
        sentence: `With a = ${say(scales[here])}, \u03bb_max is ${say(sharpness[here])} times that of the `
          + `trained network. Curvature per relative change of the weights: ${relative[here].toFixed(2)} `
          + `times. ${count}.`,
        rows: [["a", say(scales[here])], ["\u03bb_max", say(chosen.sharpness[here])],
          ["\u03bb_max as trained", say(chosen.sharpness[closest(scales, 1)])],
          ["Smallest \u03bb_max shown", say(Math.min(...chosen.sharpness))],
          ["\u03bb_max per relative change", say(chosen.relative[here])],
          ["Predictions changed", `${changed} of ${examples}`]],
      };
    },
  };

  /* The figure landscape is one surface, seen from the side or from above. */
  figures.landscape = (canvas, width, {scale: [low, high], views}, {network, plane: kind, turn, tilt, view}) => {
    const shown = views[network][kind] ? kind : Object.keys(views[network])[0];
    const {first, second, side: n, heights, base, of, points} = views[network][shown];
    const stored = formulas.heights(heights), at = (i, j) => stored[i * n + j];
    const loss = (k) => 10 ** (low + k / 999 * (high - low));
    const k = (value) => (Math.log10(value) - low) / (high - low) * 999;
    const flat = view !== "surface", size = Math.min(width, 460);
    let spot, height = 0;  // where a place of the grid is drawn: right, down, away
    if (flat) {
      const side = Math.min(width - 66, 400);
      panel(canvas, {left: 56, top: 28, width: side, height: side},
        {from: first[0], to: first[1], label: "first direction"},
        {from: second[0], to: second[1], label: "second direction"});
      height = side + 72;
      spot = (i, j) => [56 + i / (n - 1) * side, 28 + side - j / (n - 1) * side, 0];
    } else {
      const s = size / 3;
      height = 0.96 * size + 24;
      spot = (i, j, z) => {
        const p = formulas.seen([2 * i / (n - 1) - 1, 2 * j / (n - 1) - 1, 0.9 * z / 999], turn, tilt);
        return [width / 2 + s * p[0], 24 + 1.65 * s - s * p[1], p[2]];
      };
      canvas.append(svg("text", {x: 2, y: 16, class: "strong"},
        `loss ${say(loss(0))} to ${say(loss(999))} nats (log)`));
    }
    const go = ([x, y]) => `${x.toFixed(1)} ${y.toFixed(1)}`;
    const tiles = [];
    for (let i = 0; i < n - 1; i++) for (let j = 0; j < n - 1; j++) {
      const corners = [[i, j], [i + 1, j], [i + 1, j + 1], [i, j + 1]].map(([p, q]) => spot(p, q, at(p, q)));
      const z = (at(i, j) + at(i + 1, j) + at(i + 1, j + 1) + at(i, j + 1)) / 4;
      const light = Math.round(20 + 70 * z / 999);
      tiles.push([corners[0][2] + corners[2][2], `<path d="M${corners.map(go).join("L")}z" `
        + `fill="hsl(211 55% ${light}%)" stroke="hsl(211 55% ${light - (flat ? 0 : 10)}%)"/>`]);
    }
    const surface = svg("g", {class: "surface"});
    surface.innerHTML = tiles.sort((a, b) => b[0] - a[0]).map(([, path]) => path).join("");
    canvas.append(surface);
    const grid = {from: 0, to: n - 1};
    const rings = (level, kind) => {
      const pieces = contours((i, j) => at(i, j) - level, grid, grid, [0], n - 1)[0];
      canvas.append(svg("path", {class: kind, d: pieces.map(([p, q]) =>
        `M${go(spot(...p, level))}L${go(spot(...q, level))}`).join("")}));
    };
    if (flat) for (let f = 2 ** -9; k(base * f) < 999; f *= 2) if (f !== 2) rings(k(base * f), "level");
    rings(k(2 * base), "line b solid");
    const share = (v, [from, to]) => (v - from) / (to - from) * (n - 1);
    const kinds = ["full a circle", "a square", "a triangle"];
    const keys = Object.entries(points).map(([name, [x, y]], number) => {
      const [i, j] = [share(x, first), share(y, second)];
      const [p, q] = spot(i, j, at(Math.round(i), Math.round(j)));
      const shape = kinds[number].split(" ").pop();
      canvas.append(svg("path", {d: SHAPES[shape], class: `mark ${kinds[number]}`, transform: `translate(${p} ${q})`}));
      return [`mark ${kinds[number]}`, name];
    });
    const inside = stored.filter((v) => v < k(2 * base)).length / stored.length;
    const [least, most] = [Math.min(...stored), Math.max(...stored)].map(loss);
    return {
      height,
      keys: [["line b solid", `twice the loss of ${of}`], ...keys],
      sentence: `${network}, ${shown}: the loss is below twice that of ${of} on ${percent(inside)} of the `
        + `square, and reaches ${say(most)} nats.`,
      rows: [[`Loss of ${of}, nats`, say(base)], ["Lowest loss of the square", say(least)],
        ["Highest loss of the square", say(most)], ["Below twice the loss, part of the square", percent(inside)],
        ["First direction", first.map(say).join(" to ")], ["Second direction", second.map(say).join(" to ")]],
      drag: flat ? null : (across, down, start) => ({
        turn: (start.turn + 0.6 * across % 360 + 360) % 360, tilt: start.tilt + 0.3 * down}),
    };
  };

  // --- The box: drawing, controls, sentence, table -----------------------------------------------

  function control(spec, id, changed) {
    const field = spec.options
      ? html("select", {id}, ...spec.options.map((one) => html("option", {value: one}, one)))
      : html("input", {id, type: "range", autocomplete: "off", ...(spec.values
        ? {min: 0, max: spec.values.length - 1, step: 1}
        : {min: spec.min, max: spec.max, step: spec.step})});
    // Its value is told by the slider itself; a live region would say it twice.
    const output = spec.options ? [] : [html("output", {for: id, "aria-live": "off"})];
    const read = () => (spec.options ? field.value
      : spec.values ? spec.values[field.value] : Number(field.value));
    const show = () => {
      if (spec.options) return;
      const words = say(read()) + (spec.unit ? `\u00a0${spec.unit}` : "");
      output[0].textContent = words;
      field.setAttribute("aria-valuetext", words);
    };
    const reset = () => {
      field.value = spec.value;
      show();
    };
    reset();
    field.addEventListener("input", () => {
      show();
      changed();
    });
    const set = (value) => {
      field.value = value;  // the field keeps it within its limits
      show();
    };
    return {key: spec.key, read, set, reset, element: html("div", {class: "control"}, html("label", {for: id}, spec.label), field, ...output)};
  }

  function keyOf([kind, words]) {
    const shape = Object.keys(SHAPES).find((name) => kind.includes(name));
    const sample = shape ? {d: SHAPES[shape], transform: "translate(15 7)"} : {d: "M0 7H30"};
    return html("li", {}, svg("svg", {width: 30, height: 14, "aria-hidden": "true"},
      svg("path", {...sample, class: kind})), words);
  }

  function enliven(holder) {
    const spec = JSON.parse(holder.querySelector("script").textContent);
    const twin = document.getElementById(spec.twin)?.closest("figure");
    const figure = figures[spec.figure];
    if (!twin || !figure) throw Error(`explorable ${spec.figure}: no figure ${spec.twin} here`);
    const id = (name) => `${spec.twin}-${name}`;
    let frame = 0, timer = 0, sentence = "", drag = null;

    const tellLater = () => {
      clearTimeout(timer);
      timer = setTimeout(() => {
        if (status.textContent !== sentence) status.textContent = sentence;
      }, 250);
    };

    const changed = () => frame ||= requestAnimationFrame(draw);
    const controls = spec.controls.map((one) => control(one, id(one.key), changed));
    const reset = html("button", {type: "button"}, "Reset");
    reset.addEventListener("click", () => {
      for (const one of controls) one.reset();
      changed();
    });
    const canvas = svg("svg", {role: "img", "aria-label": spec.alt, "aria-describedby": id("status")});
    const status = html("p", {id: id("status"), class: "status", role: "status"});
    const keys = html("ul", {class: "keys"});
    const rows = html("tbody");
    const box = html("div", {class: "explorable-box"},
      ...(spec.prompt ? [html("p", {class: "prompt"}, spec.prompt)] : []),
      keys, canvas,
      html("div", {class: "controls", role: "group", "aria-label": "Controls"},
        ...controls.map((one) => one.element), reset),
      status,
      html("details", {}, html("summary", {}, "These values as a table"), html("table", {}, rows)));

    const state = () => Object.fromEntries(controls.map((one) => [one.key, one.read()]));

    /* What can be dragged has sliders too: drag(right, down, state at its start) gives their values. */
    canvas.addEventListener("pointerdown", (down) => {
      if (!drag || !down.isPrimary || down.button) return;
      const start = state(), stop = new AbortController();
      canvas.setPointerCapture(down.pointerId);
      canvas.addEventListener("pointermove", (now) => {
        const values = drag?.(now.clientX - down.clientX, now.clientY - down.clientY, start) ?? {};
        for (const one of controls) if (one.key in values) one.set(values[one.key]);
        changed();
      }, stop);
      for (const end of ["pointerup", "pointercancel"]) canvas.addEventListener(end, () => stop.abort(), stop);
    });

    function draw() {
      frame = 0;
      const width = Math.min(box.clientWidth, 620);
      if (!width) return;  // on paper, or folded away
      canvas.replaceChildren();
      const drawn = figure(canvas, width, spec.data, state());
      drag = drawn.drag;
      canvas.classList.toggle("drag", Boolean(drag));
      for (const [name, value] of Object.entries({width, height: drawn.height,
        viewBox: `0 0 ${width} ${drawn.height}`})) canvas.setAttribute(name, value);
      keys.replaceChildren(...drawn.keys.map(keyOf));
      rows.replaceChildren(...drawn.rows.map(([name, value]) =>
        html("tr", {}, html("th", {scope: "row"}, name), html("td", {}, value))));
      sentence = drawn.sentence;
      tellLater();  // also when the box was folded away or the frame came late
    }

    twin.prepend(box);
    try {
      draw();
    } catch (error) {
      box.remove();
      throw error;
    }
    status.textContent = sentence;
    twin.classList.add("explored");
    new ResizeObserver(changed).observe(box);
  }

  function start() {
    for (const holder of document.querySelectorAll(".explorable")) {
      try {
        enliven(holder);
      } catch (error) {
        console.error(error);  // the twin stays; the tests of the pages see this
      }
    }
  }
  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", start);
  else start();

  return {formulas, figures};
})();
