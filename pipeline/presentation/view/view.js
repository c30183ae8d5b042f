"use strict";
// The pages of `emolake view`: one clock for the picture, its boxes and its lanes, and one key a label.

const $ = (id) => document.getElementById(id);
const address = new URL(location.href);
if (address.searchParams.has("token")) { // it stands in the cookie by now, and is nothing for a history
  address.searchParams.delete("token");
  history.replaceState(null, "", address);
}

async function ask(path, body) {
  const sent = body === undefined ? {} : { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) };
  const answer = await fetch(path, sent);
  if (!answer.ok) throw new Error(await answer.text());
  return answer.json();
}

$("reread").addEventListener("click", async (event) => {
  event.target.disabled = true;
  try { await ask("/api/read", {}); location.reload(); } catch (error) { event.target.textContent = error.message; }
});

const clock = (s) => {
  const minutes = Math.floor(s / 60), rest = s - 60 * minutes;
  return `${minutes}:${rest < 10 ? "0" : ""}${rest.toFixed(1)}`;
};

class Film {
  // The video as it is, or in stretches that the server makes playable; `time` is the video's own.
  constructor(element, stretch) {
    this.element = element; this.stretch = stretch; this.begins = 0; this.number = null; this.remade = false;
    element.addEventListener("error", () => this.failed());
    element.addEventListener("loadeddata", () => { this.ready = !this.loading; });
    element.addEventListener("loadedmetadata", () => { if (!this.remade && !element.videoWidth) this.failed(); });
  }
  open(story, at, told) {
    // Nothing of the last film may stay in sight under what is asked of this one.
    this.element.pause(); this.element.removeAttribute("src"); this.element.load();
    this.id = story.video_id; this.duration = story.duration_s; this.told = told; this.number = null;
    this.remade = Boolean(story.remade); this.begins = 0; this.wanted = at; this.turn = (this.turn || 0) + 1; this.lost = Boolean(story.gone);
    this.loading = this.ready = false;
    if (story.gone) { told(`This video cannot be shown: ${story.gone}`, true); return; }
    this.plain = this.remade ? `Remade around the moment: ${story.remade}.` : "";
    told(this.plain);
    if (!this.remade) this.element.src = `/media/${this.id}`;
    this.seek(at);
  }
  failed() {
    if (!this.id || this.lost || !this.element.getAttribute("src")) return;
    if (this.remade) { this.fail("the browser cannot play it"); return; }
    this.remade = true; this.number = null;
    this.plain = "Remade around the moment: this browser cannot play the file.";
    this.told(this.plain);
    this.seek(this.wanted);
  }
  fail(why) { this.number = null; this.lost = true; this.told(`This moment cannot be shown: ${why}`, true); }
  // Whether the picture of the wanted moment is there, or it is known that there will be none.
  get settled() { return this.lost || this.ready; }
  get more() { return this.remade && (this.number + 1) * this.stretch < this.duration; }
  get time() { return this.begins + this.element.currentTime; }
  seek(at) {
    this.wanted = Math.max(0, Math.min(at, this.duration || at));
    if (!this.remade) { this.element.currentTime = this.wanted; return; }
    this.load(Math.floor(this.wanted / this.stretch), this.wanted, !this.element.paused);
  }
  async load(number, at, play) {
    if (number !== this.number) {
      const turn = ++this.turn, source = `/remade/${this.id}/${number}`;
      this.number = number; this.loading = true; this.lost = this.ready = false; this.element.pause();
      let head, why = "";
      try {
        head = await fetch(source, { headers: { Range: "bytes=0-0" } });
        if (!head.ok) why = await head.text();
      } catch (error) { why = error.message; }
      if (turn !== this.turn) return; // something else is wanted by now
      this.loading = false;
      if (why) { this.element.removeAttribute("src"); this.element.load(); this.fail(why); return; }
      this.told(this.plain);
      this.begins = Number(head.headers.get("X-Begins")) || 0;
      this.element.src = source;
      if (Math.floor(this.wanted / this.stretch) === number) at = this.wanted; // moved meanwhile
    }
    this.element.currentTime = Math.max(0, at - this.begins);
    if (play) this.element.play().catch(() => {});
  }
}

class Page {
  constructor(data) {
    this.data = data; this.film = new Film($("film"), data.stretch_s); this.story = null; this.lane = 0; this.at = 0;
    this.minute = false; this.last = []; this.pairing = null; this.item = null; this.loop = null; this.busy = Promise.resolve();
    const keys = "1234567890";
    data.labels.forEach((label, k) => {
      const button = document.createElement("button");
      button.type = "button"; button.dataset.label = label; button.setAttribute("aria-pressed", "false");
      button.innerHTML = `<i class="dot"></i><span></span><kbd>${keys[k] || ""}</kbd>`;
      button.querySelector("i").style.background = data.colours[label] || "transparent";
      button.querySelector("span").textContent = label;
      button.addEventListener("click", () => { this.answer(label); button.blur(); }); // space plays, and answers nothing
      $("answers").append(button);
    });
    $("note").addEventListener("submit", (event) => {
      event.preventDefault();
      const field = event.target.elements.text;
      if (field.value.trim()) this.say("note", field.value.trim()).then((stored) => { if (stored) { field.value = ""; field.blur(); } });
    });
    document.addEventListener("keydown", (event) => this.key(event, keys));
    addEventListener("resize", () => this.draw());
    $("film").addEventListener("seeked", () => this.follow());
    $("film").addEventListener("ended", () => {
      const film = this.film;
      if (film.more && (!this.loop || film.time < this.loop[1] - 0.1)) film.load(film.number + 1, 0, true);
      else if (this.loop) { film.seek(this.loop[0]); film.element.play().catch(() => {}); }
    });
    const tick = () => { this.follow(); requestAnimationFrame(tick); };
    requestAnimationFrame(tick);
  }
  notice(text, bad) { $("notice").textContent = text; $("notice").classList.toggle("bad", Boolean(bad)); }

  async begin() {
    if (this.data.queue) return this.next();
    await this.load(this.data.video_id, false);
    const track = address.searchParams.get("track");
    const lane = this.story.lanes.findIndex((l) => `${l.segment}.${l.track_id}` === track);
    this.lane = Math.max(lane, 0);
    this.go(Number(address.searchParams.get("at")) || 0);
  }
  async load(id, blind) {
    this.story = await ask(`/api/video/${id}${blind ? "?blind=1" : ""}`);
    const name = this.story.uri.split("/").pop();
    if ($("title")) $("title").textContent = name;
    document.title = `${name}: emolake`;
    this.lane = 0; this.build();
    this.opened = false; this.shown = null; this.drawn = null; this.pairing = null;
  }
  async next() {
    const asked = new URLSearchParams(this.data.queue);
    if (this.data.blind) asked.set("blind", "1");
    const told = await ask(`/api/next?${asked}`);
    const taught = told.taught;
    $("progress").textContent = `${told.done} of ${told.total} done` + (taught && taught.labels ? `; of ${taught.labels} labels the model had ${taught.right}` : "");
    this.item = told.item;
    if (!told.item) { this.notice("Nothing is left to be asked."); $("face").textContent = "Done"; $("film").pause(); return; }
    if (!this.story || this.story.video_id !== told.item.video_id || this.data.blind) await this.load(told.item.video_id, this.data.blind);
    this.question();
  }
  question() { // back to what is asked
    const item = this.item;
    if (!item || this.story.video_id !== item.video_id) return;
    this.lane = Math.max(0, this.story.lanes.findIndex((l) => l.segment === item.segment && l.track_id === item.track_id));
    this.loop = [Math.max(0, item.start_s - 0.2), Math.max(item.end_s, item.start_s + 0.6) + 0.2];
    this.go(item.start_s);
    $("film").muted = true;
    if (!this.film.lost) $("film").play().catch(() => {});
  }
  asks(key) { return this.item && sameWindow(key, this.item); }
  // Lanes.
  build() {
    $("lanes").replaceChildren();
    this.story.lanes.forEach((lane, k) => {
      const row = document.createElement("div"), button = document.createElement("button"), strip = document.createElement("canvas");
      row.className = "lane"; row.setAttribute("role", "group"); row.setAttribute("aria-label", `${lane.name} ${lane.model}`);
      button.type = "button"; button.textContent = lane.model && this.models().size > 1 ? `${lane.name} ${lane.model}` : lane.name;
      button.title = `${lane.name} ${lane.model}`;
      button.addEventListener("click", () => { if (this.pairing) { this.pair(k); return; } this.lane = k; this.go(lane.windows[0].start_s); });
      strip.addEventListener("click", (event) => {
        if (this.pairing) { this.pair(k); return; }
        const [from, to] = this.span(), place = event.offsetX / strip.clientWidth;
        this.lane = k; this.loop = null; this.go(from + place * (to - from));
      });
      row.append(button, strip); $("lanes").append(row);
      lane.button = button; lane.strip = strip;
    });
    const axis = document.createElement("div");
    axis.className = "axis"; axis.innerHTML = "<span></span><span></span>"; $("lanes").append(axis);
    this.axis = axis;
  }
  models() { return new Set(this.story.lanes.map((lane) => lane.model)); }
  span() {
    const whole = Math.max(this.story.duration_s, 0.1);
    if (!this.minute || whole <= 60) return [0, whole];
    const from = Math.max(0, Math.min(this.at - 30, whole - 60));
    return [from, from + 60];
  }
  said(lane, window, kind) {
    return this.story.labels.filter((l) => l.segment === lane.segment && l.track_id === lane.track_id && l.window === window.window && Math.abs(l.start_s - window.start_s) < 0.011 && Math.abs(l.end_s - window.end_s) < 0.011 && (!kind || l.kind === kind));
  }
  draw() {
    if (!this.story) return;
    const [from, to] = this.span(), style = getComputedStyle(document.documentElement), ratio = devicePixelRatio || 1;
    this.story.lanes.forEach((lane, k) => {
      const strip = lane.strip, width = Math.round(strip.clientWidth * ratio), height = Math.round(strip.clientHeight * ratio);
      const key = [from, to, width, height, this.revised || 0, style.getPropertyValue("--dim")].join();
      if (!lane.drawn || lane.drawn.key !== key) lane.drawn = { key, picture: this.drawLane(lane, from, to, width, height, ratio, style) };
      if (strip.width !== width || strip.height !== height) { strip.width = width; strip.height = height; }
      const pen = strip.getContext("2d");
      pen.clearRect(0, 0, width, height);
      if (width && height) pen.drawImage(lane.drawn.picture, 0, 0);
      pen.fillStyle = style.getPropertyValue("--mark");
      pen.fillRect((this.at - from) / (to - from) * width - ratio, 0, 2 * ratio, height);
      lane.button.setAttribute("aria-pressed", String(k === this.lane));
    });
    const [left, right] = this.axis.children;
    left.textContent = clock(from); right.textContent = clock(to);
  }
  drawLane(lane, from, to, width, height, ratio, style) { // all but the cursor, which moves with each frame
    const picture = document.createElement("canvas");
    picture.width = width; picture.height = height;
    const pen = picture.getContext("2d"), x = (s) => (s - from) / (to - from) * width;
    for (const w of lane.windows) {
      if (w.end_s < from || w.start_s > to) continue;
      const tall = w.confidence === undefined ? 0.5 : Math.max(w.confidence, 0.12), wide = Math.max(x(w.end_s) - x(w.start_s) - ratio, ratio);
      pen.fillStyle = w.emotion ? this.data.colours[w.emotion] || "#5B5B5B" : style.getPropertyValue("--dim");
      pen.globalAlpha = w.uncertain ? 0.45 : 1;
      pen.fillRect(x(w.start_s), height * (0.78 * (1 - tall)), wide, height * 0.78 * tall);
      pen.globalAlpha = 1;
      this.said(lane, w, "emotion").forEach((l, n, all) => { // people below the model, one beside the other
        pen.fillStyle = this.data.colours[l.label] || style.getPropertyValue("--ink");
        pen.fillRect(x(w.start_s) + wide * n / all.length, height * 0.84, wide / all.length, height * 0.16);
      });
    }
    return picture;
  }
  // One clock.
  go(at) {
    if (!this.story) return;
    this.at = at;
    if (!this.opened) { this.opened = true; this.film.open(this.story, at, (t, bad) => this.notice(t, bad)); } else this.film.seek(at);
    this.show(); this.draw(); this.frame();
  }
  follow() {
    const film = this.film;
    if (!this.story || film.element.readyState < 2 || film.element.seeking) return;
    if (film.time === this.drawn) return;
    this.drawn = this.at = film.time;
    if (this.loop && (this.at < this.loop[0] - 0.5 || this.at > this.loop[1] + 0.6)) this.loop = null; // somebody moved it
    if (this.loop && this.at > this.loop[1] && !film.element.paused) { film.seek(this.loop[0]); return; }
    this.show(); this.draw(); this.frame();
  }
  frame() { // boxes over the picture
    const canvas = $("boxes"), film = $("film"), pen = canvas.getContext("2d"), ratio = devicePixelRatio || 1;
    canvas.width = canvas.clientWidth * ratio; canvas.height = canvas.clientHeight * ratio;
    pen.clearRect(0, 0, canvas.width, canvas.height);
    if (!film.videoWidth) return;
    const scale = Math.min(canvas.width / film.videoWidth, canvas.height / film.videoHeight);
    const w = film.videoWidth * scale, h = film.videoHeight * scale, x0 = (canvas.width - w) / 2, y0 = (canvas.height - h) / 2;
    const chosen = this.story.lanes[this.lane];
    for (const track of this.story.paths) {
      const box = placed(track, this.at);
      if (!box) continue;
      const lane = this.story.lanes.find((l) => l.segment === track.segment && l.track_id === track.track_id && (!chosen || l.model === chosen.model));
      const window = lane && holding(lane, this.at), mine = chosen && lane === chosen;
      pen.strokeStyle = pen.fillStyle = window && window.emotion ? this.data.colours[window.emotion] || "#fff" : "#fff";
      pen.lineWidth = (mine ? 3 : 1.5) * ratio;
      pen.setLineDash(box[5] ? [6 * ratio, 5 * ratio] : []);
      const [x1, y1, x2, y2] = [x0 + box[1] * w, y0 + box[2] * h, x0 + box[3] * w, y0 + box[4] * h];
      pen.strokeRect(x1, y1, x2 - x1, y2 - y1);
      const person = window && window.person_id != null ? ` person ${window.person_id}` : "";
      const text = `face ${track.segment}.${track.track_id}${person}${window && window.emotion ? ` ${window.emotion}` : ""}`;
      pen.font = `${13 * ratio}px system-ui, sans-serif`; pen.lineWidth = 3 * ratio; pen.setLineDash([]);
      pen.strokeStyle = "#000"; pen.strokeText(text, x1, Math.max(y1 - 5 * ratio, 13 * ratio)); pen.fillText(text, x1, Math.max(y1 - 5 * ratio, 13 * ratio));
    }
  }
  window() {
    const lane = this.story && this.story.lanes[this.lane];
    if (!lane) return null;
    if (this.item && lane.segment === this.item.segment && lane.track_id === this.item.track_id && this.loop) return lane.windows.find((w) => w.window === this.item.window) || null;
    return holding(lane, this.at);
  }
  show() { // the moment, in words
    const lane = this.story.lanes[this.lane], window = this.window();
    const key = lane && window ? `${this.story.video_id}${lane.name}${lane.model}${window.window}|${this.story.labels.length}|${this.revised || 0}` : `none${this.lane}`;
    if (key === this.shown) return;
    this.shown = key;
    $("face").textContent = lane ? `${lane.name}${lane.model && this.models().size > 1 ? `, ${lane.model}` : ""}` : "No face in this video";
    $("now").textContent = !window ? "between windows" : `${clock(window.start_s)} to ${clock(window.end_s)}${window.emotion ? `: ${window.emotion}, ${Math.round(100 * window.confidence)} %${window.uncertain ? ", unsure" : ""}` : ""}`;
    $("scores").replaceChildren(...(window && window.scores || []).map(([label, score]) => {
      const bar = document.createElement("div");
      bar.className = "bar"; bar.innerHTML = "<span></span><i></i><b></b>";
      bar.children[0].textContent = label; bar.children[1].style.cssText = `width: ${Math.max(100 * score, 1)}%; background: ${this.data.colours[label] || "#5B5B5B"}`; bar.children[2].textContent = `${Math.round(100 * score)} %`;
      return bar;
    }));
    $("words").textContent = window ? [window.transcript && `“${window.transcript}”`, window.description].filter(Boolean).join(" ") : "";
    const said = lane && window ? this.said(lane, window) : [];
    $("people").replaceChildren(...said.map((l) => {
      const entry = document.createElement("li");
      entry.textContent = `${l.reviewer}: ${l.kind === "emotion" ? l.label : `${l.kind}: ${l.label}`}`;
      return entry;
    }));
    const mine = said.find((l) => l.kind === "emotion" && l.reviewer === this.data.reviewer);
    for (const button of $("answers").children) {
      button.setAttribute("aria-pressed", String(Boolean(mine) && mine.label === button.dataset.label));
      button.disabled = !window || lane.track_id < 0;
    }
  }
  // Words of the reviewer.
  key_of(lane, window) { return { video_id: this.story.video_id, segment: lane.segment, track_id: lane.track_id, window: window.window }; }
  answer(label) {
    if (this.data.queue && (this.pending || !this.film.settled)) { $("saved").textContent = "wait for the picture"; return; }
    this.say("emotion", label);
  }
  say(kind, label, on) { // whether it was stored
    const lane = this.story && this.story.lanes[this.lane], window = this.window();
    if (!on && (!window || lane.track_id < 0)) { $("saved").textContent = "no face has a window here"; return Promise.resolve(false); }
    const key = on || this.key_of(lane, window), asking = Boolean(this.data.queue) && this.asks(key) && kind === "emotion";
    if (asking) this.pending = true;
    return this.inTurn(async () => {
      try {
        const stored = await this.send({ ...key, kind, label, blind: Boolean(this.data.blind), queue: asking ? this.data.queue : null });
        if (!stored) return false;
        this.last.push({ key, kind, before: stored.before }); // which a blind page does not know
        if (asking) await this.next();
        return true;
      } finally { if (asking) this.pending = false; }
    });
  }
  inTurn(work) { // one after the other, whatever becomes of one
    this.busy = this.busy.then(work).catch((error) => { this.notice(`what comes next is not known: ${error.message}`, true); return true; });
    return this.busy;
  }
  async send(word) {
    $("saved").textContent = "saving";
    try {
      const stored = await ask("/api/say", word);
      this.keep(stored);
      $("saved").textContent = word.label === null ? "taken back" : `saved: ${word.kind === "emotion" ? word.label : word.kind}`;
      return stored;
    } catch (error) { $("saved").textContent = `not saved: ${error.message}; try again`; return false; }
  }
  keep(stored) {
    const same = (l) => sameWindow(l, stored) && l.kind === stored.kind && l.reviewer === stored.reviewer;
    if (!this.story || this.story.video_id !== stored.video_id) return;
    this.story.labels = this.story.labels.filter((l) => !same(l));
    if (stored.label !== null) this.story.labels.push(stored);
    this.revised = (this.revised || 0) + 1;
    this.show(); this.draw();
  }
  undo() { // in its turn: what was said last may still be on its way
    return this.inTurn(async () => {
      const last = this.last.at(-1);
      if (!last) { $("saved").textContent = "nothing to take back"; return; }
      if (!await this.send({ ...last.key, kind: last.kind, label: last.before, blind: Boolean(this.data.blind), queue: null })) return;
      this.last.pop();
      if (last.before !== null) $("saved").textContent = `back to: ${last.before}`;
      if (this.data.queue) await this.next();
    });
  }
  pair(k) {
    const { lane, key } = this.pairing, to = this.story.lanes[k];
    this.pairing = null;
    if (lane.segment === to.segment && lane.track_id === to.track_id) { $("saved").textContent = "that is the same face"; return; }
    this.say("same person", `${to.segment}.${to.track_id}`, key);
  }
  pairs() {
    const lane = this.story.lanes[this.lane], window = this.window();
    if (!lane || !window || lane.track_id < 0) { $("saved").textContent = "no face has a window here"; return; }
    this.pairing = { lane, key: this.key_of(lane, window) };
    $("saved").textContent = `same person as ${lane.name}: choose the other lane and press Enter, Escape ends it`;
  }
  step(by) {
    const lane = this.story.lanes[this.lane];
    if (!lane) return;
    this.loop = null; $("film").pause();
    const at = lane.windows.findIndex((w) => w.end_s > this.at + 0.02), here = at < 0 ? lane.windows.length : at;
    const between = at >= 0 && lane.windows[at].start_s > this.at + 0.02; // the one after is the next
    const k = Math.max(0, Math.min(lane.windows.length - 1, here + (between && by > 0 ? 0 : by)));
    this.go(middle(lane.windows[k]));
  }
  change(by) {
    const lane = this.story.lanes[this.lane];
    if (!lane) return;
    this.loop = null; $("film").pause();
    let k = lane.windows.findIndex((w) => w.end_s > this.at + 0.02);
    if (k < 0) k = lane.windows.length - 1;
    const was = lane.windows[k].emotion;
    while (lane.windows[k + by] && lane.windows[k].emotion === was) k += by;
    this.go(middle(lane.windows[k]));
  }
  track(by) {
    const next = this.lane + by;
    if (!this.story.lanes[next]) return;
    this.lane = next; this.loop = null;
    const lane = this.story.lanes[next];
    if (this.pairing) { this.show(); this.draw(); return; }
    this.go(holding(lane, this.at) ? this.at : middle(lane.windows[0]));
  }
  key(event, keys) {
    if (event.ctrlKey || event.metaKey || event.altKey || !this.story) return;
    if (/^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName)) { if (event.key === "Escape") event.target.blur(); return; }
    const does = {
      ArrowLeft: () => this.step(-1), ArrowRight: () => this.step(1), ArrowUp: () => this.track(-1), ArrowDown: () => this.track(1),
      "[": () => this.change(-1), "]": () => this.change(1), z: () => this.undo(),
      n: () => $("note").elements.text.focus(), w: () => { this.minute = !this.minute; this.draw(); },
      p: () => this.pairs(), q: () => this.question(),
      Enter: () => this.pair(this.lane),
      Escape: () => { this.pairing = null; $("saved").textContent = ""; },
    };
    if (event.key === " ") {
      if (event.target.tagName === "BUTTON" || event.target.tagName === "SUMMARY" || event.target.tagName === "VIDEO") return;
      const film = $("film");
      if (film.paused) film.play().catch(() => {}); else film.pause();
    } else if (does[event.key]) {
      if (event.key === "Enter" && (!this.pairing || /^(BUTTON|A|SUMMARY)$/.test(event.target.tagName))) return;
      does[event.key]();
    } else if (keys.includes(event.key) && this.data.labels[keys.indexOf(event.key)]) {
      if (!event.repeat) this.answer(this.data.labels[keys.indexOf(event.key)]);
    } else return;
    event.preventDefault();
  }
}

const sameWindow = (a, b) => ["video_id", "segment", "track_id", "window"].every((name) => a[name] === b[name]);
const middle = (w) => (w.start_s + w.end_s) / 2;

function holding(lane, at) {
  let best = null;
  for (const w of lane.windows) if (w.start_s <= at + 1e-3 && at <= w.end_s + 1e-3) best = w;
  return best;
}

function placed(track, at) { // where a face is, between two frames too
  const path = track.path;
  if (!path.length || at < track.start_s - 0.05 || at > track.end_s + 0.05) return null;
  let k = 0, end = path.length - 1;
  while (k < end) { const mid = (k + end + 1) >> 1; if (path[mid][0] <= at) k = mid; else end = mid - 1; }
  const a = path[k], b = path[Math.min(k + 1, path.length - 1)], part = b[0] > a[0] ? Math.max(0, Math.min(1, (at - a[0]) / (b[0] - a[0]))) : 0;
  return a.map((value, n) => n === 5 ? value : value + part * (b[n] - value));
}

if ($("data")) {
  const page = new Page(JSON.parse($("data").textContent));
  page.begin().catch((error) => page.notice(error.message, true));
}
