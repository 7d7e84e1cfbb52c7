"""Networks from outside this workbook, made to pass for a row of the table."""
