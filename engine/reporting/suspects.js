/* The page of suspicious labels: theme and a table to sort. */
"use strict";
setUpTheme();
setUpSorting();
