package org.kdlite.demo.ui

import android.content.Context
import android.graphics.Bitmap
import android.graphics.Canvas
import android.graphics.Color
import android.graphics.Paint
import android.os.Bundle
import android.os.Parcelable
import android.util.AttributeSet
import android.view.MotionEvent
import android.view.View
import org.kdlite.demo.R
import org.kdlite.demo.core.Pixels

/** A black square to draw on in white, as Fashion-MNIST and MNIST are. */
class DrawView(context: Context, attributes: AttributeSet?) : View(context, attributes) {
    /** Called when a stroke has grown or all was cleared. */
    var onChange: () -> Unit = {}

    /** Strokes as points `x, y, x, y, ...` in 0 to 1, so that they fit any size. */
    private val strokes = ArrayList<FloatArray>()
    private var stroke = ArrayList<Float>()
    private val paint = Paint(Paint.ANTI_ALIAS_FLAG).apply {
        color = Color.WHITE
        style = Paint.Style.STROKE
        strokeCap = Paint.Cap.ROUND
        strokeJoin = Paint.Join.ROUND
    }

    private val edge = Paint().apply {
        color = context.getColor(R.color.frame)
        style = Paint.Style.STROKE
        strokeWidth = 2 * resources.displayMetrics.density
    }

    val isBlank: Boolean get() = strokes.isEmpty() && stroke.isEmpty()

    fun clear() {
        strokes.clear()
        stroke = ArrayList()
        invalidate()
        onChange()
    }

    /** What was drawn, as an image of [side] pixels. */
    fun pixels(side: Int = 112): Pixels {
        val bitmap = Bitmap.createBitmap(side, side, Bitmap.Config.ARGB_8888)
        paint(Canvas(bitmap), side.toFloat())
        return bitmap.toPixels()
    }

    override fun onDraw(canvas: Canvas) {
        paint(canvas, width.toFloat())
        // Where the screen is dark too, one must see where the canvas ends.
        val half = edge.strokeWidth / 2
        canvas.drawRect(half, half, width - half, height - half, edge)
    }

    override fun onTouchEvent(event: MotionEvent): Boolean {
        when (event.actionMasked) {
            MotionEvent.ACTION_DOWN -> {
                // The page around would scroll.
                parent.requestDisallowInterceptTouchEvent(true)
                add(event.x, event.y)
            }
            MotionEvent.ACTION_MOVE -> {
                for (i in 0 until event.historySize) add(event.getHistoricalX(i), event.getHistoricalY(i))
                add(event.x, event.y)
            }
            MotionEvent.ACTION_UP -> {
                add(event.x, event.y)
                finishStroke()
                performClick()
            }
            MotionEvent.ACTION_CANCEL -> finishStroke()
            else -> return super.onTouchEvent(event)
        }
        invalidate()
        onChange()
        return true
    }

    override fun performClick(): Boolean = super.performClick()

    override fun onSaveInstanceState(): Parcelable = Bundle().apply {
        putParcelable(OUTER, super.onSaveInstanceState())
        putInt(COUNT, strokes.size)
        strokes.forEachIndexed { index, points -> putFloatArray("$index", points) }
    }

    override fun onRestoreInstanceState(state: Parcelable?) {
        val kept = state as Bundle
        @Suppress("DEPRECATION")
        super.onRestoreInstanceState(kept.getParcelable(OUTER))
        strokes.clear()
        for (index in 0 until kept.getInt(COUNT)) kept.getFloatArray("$index")?.let(strokes::add)
    }

    private fun add(x: Float, y: Float) {
        stroke.add((x / width).coerceIn(0f, 1f))
        stroke.add((y / height).coerceIn(0f, 1f))
    }

    private fun finishStroke() {
        if (stroke.isNotEmpty()) strokes.add(stroke.toFloatArray())
        stroke = ArrayList()
    }

    private fun paint(canvas: Canvas, side: Float) {
        canvas.drawColor(Color.BLACK)
        paint.strokeWidth = side / 14
        for (points in strokes + listOf(stroke.toFloatArray())) {
            for (i in 0 until points.size / 2) {
                val from = 2 * maxOf(0, i - 1)
                canvas.drawLine(
                    points[from] * side, points[from + 1] * side, points[2 * i] * side, points[2 * i + 1] * side, paint,
                )
            }
        }
    }

    private companion object {
        const val OUTER = "outer"
        const val COUNT = "count"
    }
}
