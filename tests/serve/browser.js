// Visits pages in Chromium: node browser.js '{"chromium": PATH, "modules": FOLDER, "url": ..., "pages": {NAME: PATH}, "output": FOLDER}'
// Prints as JSON what axe-core finds in each window, and what the keyboard and a browser without JavaScript do.
"use strict";
const fs = require("fs");
const task = JSON.parse(process.argv[2]);
const puppeteer = require(`${task.modules}/puppeteer-core`);
const axe = fs.readFileSync(`${task.modules}/axe-core/axe.min.js`, "utf8");
const WINDOWS = { small: [360, 740], large: [1440, 1000] };

async function open(browser, size, path, { dark = false, scripts = true } = {}) {
  const page = await browser.newPage();
  page.trouble = [];
  page.on("console", (message) => page.trouble.push(message.text()));
  page.on("pageerror", (error) => page.trouble.push(String(error)));
  page.on("dialog", async (dialog) => {
    page.trouble.push(`dialog: ${dialog.message()}`);
    await dialog.dismiss();
  });
  await page.setViewport({ width: size[0], height: size[1] });
  if (dark) await page.emulateMediaFeatures([{ name: "prefers-color-scheme", value: "dark" }]);
  await page.setJavaScriptEnabled(scripts);
  await page.goto(task.url + path, { waitUntil: "load", timeout: 120000 });
  return page;
}

async function inspect(page) {
  await page.$$eval("details", (all) => all.slice(0, 3).forEach((each) => (each.open = true)));
  await page.evaluate(axe); // by the debugger, which the page's policy does not bind
  return page.evaluate(async () => {
    const { violations } = await window.axe.run(document);
    const root = document.documentElement;
    return {
      violations: violations.map((v) => `${v.id}: ${v.nodes[0].html} (${v.nodes.length})`),
      overflow: root.scrollWidth - root.clientWidth,
    };
  });
}

async function keyboard(page) {
  const steps = [];
  const here = () => page.evaluate(() => {
    const item = document.activeElement.closest("li");
    return item ? item.id : document.activeElement.id;
  });
  await page.focus("#q");
  for (const key of ["ArrowDown", "ArrowDown", "ArrowUp", "ArrowRight", "Escape"]) {
    await page.keyboard.press(key);
    steps.push(await here());
  }
  await page.keyboard.press("ArrowDown");
  await Promise.all([page.waitForNavigation(), page.keyboard.press("Enter")]);
  return { steps, opened: await page.$eval("h1", (title) => title.textContent) };
}

async function withoutScripts(browser, path) {
  const page = await open(browser, WINDOWS.large, "/", { scripts: false });
  const hasNoKeys = await page.$eval("#keys", (line) => line.hidden);
  await page.focus("#q");
  await page.keyboard.type(decodeURIComponent(new URL(task.url + path).searchParams.get("q")));
  await Promise.all([page.waitForNavigation({ timeout: 120000 }), page.keyboard.press("Enter")]);
  const count = (await page.$$(".results > li")).length;
  await page.focus("details summary");
  await page.keyboard.press("Enter");
  const isOpen = await page.$eval("details", (each) => each.open);
  return { count, isOpen, trouble: page.trouble, hasNoKeys };
}

(async () => {
  const browser = await puppeteer.launch({
    executablePath: task.chromium,
    args: ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"],
  });
  const found = { pages: {} };
  for (const [name, path] of Object.entries(task.pages)) {
    for (const [window, size] of Object.entries(WINDOWS)) {
      for (const dark of [false, true]) {
        const page = await open(browser, size, path, { dark });
        const key = `${name}-${window}-${dark ? "dark" : "light"}`;
        await page.screenshot({ path: `${task.output}/${key}.png` });
        found.pages[key] = { ...(await inspect(page)), trouble: page.trouble };
        await page.close();
      }
    }
  }
  const page = await open(browser, WINDOWS.large, task.pages.results);
  found.keyboard = await keyboard(page);
  found.plain = await withoutScripts(browser, task.pages.results);
  console.log(JSON.stringify(found));
  await browser.close();
})().catch((error) => {
  console.error(error);
  process.exit(1);
});
