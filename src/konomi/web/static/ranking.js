// The ranks of one task, with nothing of the page in it: key -> 1 (best) .. K, equal ranks are a tie.

export class Ranking {
  /** @param {string[]} keys in the order shown; none has a rank unless `ranks` gives one. */
  constructor(keys, ranks = {}) {
    this.keys = keys;
    this.ranks = { ...ranks };
  }

  get complete() {
    return this.keys.every((key) => key in this.ranks);
  }

  get missing() {
    return this.keys.filter((key) => !(key in this.ranks));
  }

  tied(key) {
    return key in this.ranks && this.keys.some((other) => other !== key && this.ranks[other] === this.ranks[key]);
  }

  /** Give a rank, or take it away with null. */
  set(key, rank) {
    const next = { ...this.ranks };
    delete next[key];
    if (rank !== null) next[key] = rank;
    return this.become(next);
  }

  /** Half a step up: out of a tie to above it, or into a tie with those above; without a rank: to the top. */
  better(key) {
    return this.step(key, -1);
  }

  /** Half a step down; without a rank: to the bottom. */
  worse(key) {
    return this.step(key, 1);
  }

  step(key, way) {
    const tiers = this.tiers();
    const at = tiers.findIndex((tier) => tier.includes(key));
    if (at < 0) tiers.splice(way < 0 ? 0 : tiers.length, 0, [key]);
    else if (tiers[at].length > 1) {
      tiers[at] = tiers[at].filter((other) => other !== key);
      tiers.splice(way < 0 ? at : at + 1, 0, [key]);
    } else if (tiers[at + way]) {
      tiers[at + way].push(key);
      tiers.splice(at, 1);
    } else return false;
    return this.become(numbered(tiers));
  }

  become(next) {
    const same = this.keys.every((key) => next[key] === this.ranks[key]);
    if (same) return false;
    this.ranks = next;
    return true;
  }

  /** Groups of equal rank, the best first. */
  tiers() {
    const ranked = this.keys.filter((key) => key in this.ranks);
    const levels = [...new Set(ranked.map((key) => this.ranks[key]))].sort((a, b) => a - b);
    return levels.map((level) => ranked.filter((key) => this.ranks[key] === level));
  }

  /** As it is sent: 1 2 2 4. */
  canonical() {
    return numbered(this.tiers());
  }
}

function numbered(tiers) {
  const ranks = {};
  let before = 0;
  for (const tier of tiers) {
    for (const key of tier) ranks[key] = before + 1;
    before += tier.length;
  }
  return ranks;
}
