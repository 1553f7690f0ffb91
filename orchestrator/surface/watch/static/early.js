// Before the first paint: the chosen theme. Errors are kept on the root element, where a test can see them.
"use strict";
(() => {
  const root = document.documentElement;
  try { root.dataset.theme = localStorage.getItem("theme") || "auto"; } catch { root.dataset.theme = "auto"; }
  const failed = (what) => { root.dataset.errors = (root.dataset.errors || "") + what + "\n"; };
  addEventListener("error", (event) => failed(event.message));
  addEventListener("unhandledrejection", (event) => failed(String(event.reason)));
  addEventListener("securitypolicyviolation", (event) => failed(`blocked ${event.violatedDirective} ${event.blockedURI}`));
})();
