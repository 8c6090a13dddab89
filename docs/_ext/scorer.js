/* How Sphinx's search weighs what it finds: guides and problems first, the reasons behind the code last. */
var Scorer = {
  score: ([docname, , , , score]) => {
    if (docname.startsWith("how-to/") || docname.startsWith("problems/")) return score + 4;
    if (docname.startsWith("design/") || docname === "changelog") return score - 4;
    return score;
  },
  objNameMatch: 11,
  objPartialMatch: 6,
  objPrio: { 0: 15, 1: 5, 2: -5 },
  objPrioDefault: 0,
  title: 15,
  partialTitle: 7,
  term: 5,
  partialTerm: 2,
};
